import pytest
import torch
from tests.explainers.cells import X, alike, curved, flat, grad_cam, pooled, seeded, taken
from torch import nn

import pellucid as pl
from pellucid.core.random import normal


def test_after_a_pooled_linear_head_it_is_the_weights_times_the_channels():
    """Grad-CAM = ReLU(w . A) / HW."""
    net = pooled()
    a, w = net[1](net[0](X)).detach(), net[4].weight[2].detach()
    expected = torch.einsum("k,bkhw->bhw", w, a)[:, None].clamp(min=0) / (4 * 5)
    found = pl.GradCAM()(pl.TorchModel(net), X, target=2).scores
    assert alike(found, expected)
    assert 0 < float((found == 0).double().mean()) < 1, "something was cut off, and something left"


@pytest.mark.parametrize("net", [flat(), curved()], ids=["flat", "curved"])
def test_on_any_head_each_channel_counts_by_its_mean_gradient(net):
    a, g = taken(net, "1", X, lambda out: out[:, 1])
    assert float(g.std((2, 3)).min()) > 0, "a gradient that varies over the cells"
    found = pl.GradCAM(layer="1")(pl.TorchModel(net), X, target=1).scores
    assert alike(found, grad_cam(a, g))


def test_it_is_not_the_gradient_cell_by_cell():
    model = pl.TorchModel(flat())
    grad, hires = (method(model, X, target=1).scores for method in (pl.SignedGradCAM(), pl.HiResCAM()))
    assert float((20 * grad - hires).abs().max()) > 0.1 * float(hires.abs().max())


def test_the_signed_map_keeps_what_speaks_against_the_target():
    net = curved()
    a, g = taken(net, "1", X, lambda out: out[:, 1])
    found = pl.SignedGradCAM(layer="1")(pl.TorchModel(net), X, target=1).scores
    assert alike(found, (g.mean((2, 3), keepdim=True) * a).sum(1, keepdim=True))
    assert float(found.min()) < 0 < float(found.max())


def test_the_conventions_are_explainers_with_a_layer():
    assert pl.GradCAM.captum("1") == pl.SignedGradCAM(layer="1")
    inside = pl.GradCAM(layer="1")
    assert pl.GradCAM.grad_cam("1") == pl.MinMax(base=pl.Upsampled(base=pl.MinMax(base=inside)))


def test_smooth_grad_over_it_is_the_mean_over_the_same_noise():
    net, one = curved(), X[:1]
    found = pl.SmoothGrad(base=pl.GradCAM(layer="1"), n_samples=12, seed=4)(pl.TorchModel(net), one, target=1)
    stream = pl.Key.of(one[0]).stream(4)
    copies = torch.stack([one[0] + 0.15 * (one.max() - one.min()) * noise_of(stream, i) for i in range(12)])
    maps = grad_cam(*taken(net, "1", copies, lambda out: out[:, 1]))
    assert alike(found.scores, maps.mean(0, keepdim=True))
    assert alike(found.standard_error, maps.std(0, keepdim=True) / 12**0.5)
    assert found.recipe.notes["layer"] == ["1"]


@pytest.mark.parametrize("layer", ["0", "1", "2", None])
def test_smooth_grad_over_it_sees_layers_whose_norms_are_folded(layer):
    """Layer "0" is the convolution that does a norm's work for the length of the call: it still gives its own."""
    net = folding_net()
    one, model = X[:1], pl.TorchModel(net)
    found = pl.SmoothGrad(base=pl.GradCAM(layer=layer), n_samples=4, seed=4)(model, one, target=1)
    assert found.recipe.run["folded"] == 2
    stream = pl.Key.of(one[0]).stream(4)
    copies = torch.stack([one[0] + 0.15 * (one.max() - one.min()) * noise_of(stream, i) for i in range(4)])
    maps = grad_cam(*taken(net, layer or "5", copies, lambda out: out[:, 1]))
    assert alike(found.scores, maps.mean(0, keepdim=True))


def folding_net() -> nn.Module:
    def build() -> nn.Module:
        net = nn.Sequential(
            nn.Conv2d(3, 6, 3, 2), nn.BatchNorm2d(6), nn.Tanh(), nn.Conv2d(6, 5, 3, padding=1), nn.BatchNorm2d(5),
            nn.Tanh(), nn.Flatten(), nn.Linear(100, 3),
        )  # fmt: skip
        for norm in (net[1], net[4]):
            for tensor in (norm.weight.data, norm.bias.data, norm.running_mean, norm.running_var):
                tensor.uniform_(0.5, 2)
        return net

    return seeded(build)


def noise_of(stream: pl.Key, index: int) -> torch.Tensor:
    return torch.from_numpy(normal(stream, index, tuple(X.shape[1:]))).double()

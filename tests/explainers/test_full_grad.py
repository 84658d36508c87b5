import numpy as np
import pytest
import torch
from tests.explainers.cells import enlarged
from tests.explainers.paths import SIDES, X, near, seeded
from tests.oracles import conv_net, uniform
from torch import Tensor, nn

import pellucid as pl


def rectifier() -> nn.Module:
    """Convolution, a norm with statistics of its own, ReLU, a layer without bias, a head."""

    def build() -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 5, 3, stride=2, bias=False),
            nn.ReLU(), nn.Conv2d(5, 4, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3),
        )  # fmt: skip

    net = seeded(build)
    with torch.no_grad():
        net[1].running_mean.copy_(uniform(4, seed=1, dtype=torch.float64) - 0.5)
        net[1].running_var.copy_(uniform(4, seed=2, dtype=torch.float64) + 0.5)
        net[1].weight.copy_(uniform(4, seed=3, dtype=torch.float64) + 0.5)
        net[1].bias.copy_(uniform(4, seed=4, dtype=torch.float64) - 0.5)
        net[5].weight.abs_()  # so that no input leaves all of it at rest
    return net


def psi(maps: Tensor) -> Tensor:
    """Magnitudes of each picture from 0 to 1, enlarged and summed over the channels."""
    size = maps.abs()
    least, largest = size.flatten(1).min(1).values, size.flatten(1).max(1).values
    scaled = (size - least.view(-1, 1, 1, 1)) / (largest - least).view(-1, 1, 1, 1)
    return enlarged(scaled, *SIDES).sum(1, keepdim=True)


def by_hand(net: nn.Module, x: Tensor, target: int) -> tuple[Tensor, Tensor]:
    """The map of `rectifier`, and all terms of the first equation summed: the network written out, with a leaf where
    each bias is added.
    """
    first, norm, _, second, _, third, *_, head = net
    leaf = x.clone().requires_grad_()
    one = nn.functional.conv2d(leaf, first.weight, first.bias, padding=1)
    gain = norm.weight / torch.sqrt(norm.running_var + norm.eps)
    shift = norm.bias - norm.running_mean * gain
    two = one * gain.view(4, 1, 1) + shift.view(4, 1, 1)
    three = nn.functional.conv2d(two.clamp(min=0), second.weight, stride=2).clamp(min=0)
    four = nn.functional.conv2d(three, third.weight, third.bias)
    score = four.clamp(min=0).mean((2, 3)) @ head.weight[target] + head.bias[target]
    by_x, by_one, by_two, by_four = torch.autograd.grad(score.sum(), [leaf, one, two, four])
    columns = [bias.detach().view(-1, 1, 1) for bias in (first.bias, shift, third.bias)]
    terms = [x * by_x, columns[0] * by_one, columns[1] * by_two, columns[2] * by_four]
    total = sum(term.flatten(1).sum(1) for term in terms) + head.bias[target].detach()
    return sum(psi(term) for term in terms), total


def test_its_map_is_that_of_the_network_written_out():
    net = rectifier()
    expected, total = by_hand(net, X, 2)
    a = pl.FullGrad()(pl.TorchModel(net), X, target=2)
    assert a.scores.shape == (3, 1, *SIDES)
    assert near(a.scores, expected, 1e-10)
    torch.testing.assert_close(total, net(X)[:, 2].detach(), rtol=1e-12, atol=0)


@pytest.mark.parametrize("build", [rectifier, lambda: conv_net(dtype=torch.float64)], ids=["written out", "dropout"])
def test_input_and_biases_sum_to_the_score_of_networks_of_relu(build):
    a = pl.FullGrad()(pl.TorchModel(build()), X, target=[0, 1, 2])
    score = torch.tensor([d.score for d in a.decisions], dtype=torch.float64)
    assert float((a.residual / score).abs().max()) < 1e-10
    assert float(score.abs().min()) > 1e-2


def test_biases_of_the_whole_network_are_needed_for_it():
    """Without those of the last layer, which has no places, the sum would miss by this bias."""
    net = rectifier()
    before = pl.FullGrad()(pl.TorchModel(net), X, target=1)
    with torch.no_grad():
        net[9].bias += 7
    after = pl.FullGrad()(pl.TorchModel(net), X, target=1)
    assert near(after.scores, before.scores), "it has no place on the map"
    assert float(after.residual.abs().max()) < 1e-10
    assert after.decisions[0].score == pytest.approx(before.decisions[0].score + 7)


def hard() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU6(), nn.Flatten(), nn.Linear(252, 2))


def normed() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.LayerNorm([7, 9]), nn.Flatten(), nn.Linear(252, 2))


def smooth() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Softplus(), nn.Flatten(), nn.Linear(252, 2))


@pytest.mark.parametrize("build", [hard, normed, smooth])
def test_of_other_networks_the_residual_says_what_is_missing(build):
    """A ReLU6 at 6 gives 6 with no slope; a norm of its input's own statistics has no slope along the input."""
    net, x = seeded(build), 20 * X
    a = pl.FullGrad()(pl.TorchModel(net), x, target=1)
    values = [x.clone().requires_grad_()]
    for layer in net:
        values.append(layer(values[-1]))
    score = values[-1][:, 1]
    by = torch.autograd.grad(score.sum(), values)
    missing = (x * by[0]).flatten(1).sum(1) - score.detach()
    for layer, slope in zip(net, by[1:], strict=True):
        if getattr(layer, "bias", None) is not None:
            bias = layer.bias.detach()
            missing += ((bias.view(-1, 1, 1) if isinstance(layer, nn.Conv2d) else bias) * slope).flatten(1).sum(1)
    torch.testing.assert_close(a.residual, missing, rtol=1e-9, atol=1e-9)
    assert float((missing / score.detach()).abs().min()) > 1e-4


def test_a_cell_is_drawn_where_it_looks():
    """Cells of 2 x 2 pixels; the head reads one of them. At x = 0 there is the bias alone, whose mass lies in the
    middle of that cell's pixels; with corners on corners it would lie elsewhere.
    """
    for row, column in [(2, 3), (4, 1), (3, 2)]:
        net = seeded(lambda: nn.Sequential(nn.Conv2d(1, 1, 2, stride=2), nn.Flatten(), nn.Linear(49, 1)))
        with torch.no_grad():
            net[2].weight.zero_()
            net[2].weight[0, 7 * row + column] = 1.0
        x = torch.zeros(1, 1, 14, 14, dtype=torch.float64)
        drawn = pl.FullGrad()(pl.TorchModel(net), x, target=0).scores[0, 0].numpy()
        down, along = np.indices(drawn.shape)
        centre = [float((axis * drawn).sum() / drawn.sum()) for axis in (down, along)]
        assert centre == pytest.approx([2 * row + 0.5, 2 * column + 0.5], abs=1e-9)


def test_each_layer_is_stretched_from_its_least_to_its_largest_magnitude():
    """A bias whose products are the same everywhere has no contrast and adds nothing; nothing is divided by zero."""
    net = seeded(lambda: nn.Sequential(nn.Conv2d(3, 2, 1), nn.Flatten(), nn.Linear(2 * 99, 1)))
    with torch.no_grad():
        net[0].bias.fill_(3.0)
        net[2].weight.fill_(-0.5)
    a = pl.FullGrad()(pl.TorchModel(net), X, target=0)
    by = -0.5 * net[0].weight.sum(0).detach()
    assert near(a.scores, psi(X * by))
    assert torch.isfinite(a.scores).all()


@pytest.mark.parametrize("rows", [1, 2, 64])
def test_neither_the_micro_batch_nor_the_company_changes_a_map(rows):
    net = rectifier()
    whole = pl.FullGrad()(pl.TorchModel(net), X, target=[0, 1, 2])
    for i in range(3):
        alone = pl.FullGrad()(pl.TorchModel(net), X[i : i + 1], target=i)
        assert near(alone.scores[0], whole.scores[i], 1e-10)
    split = pl.FullGrad()(pl.TorchModel(net, micro_batch=rows), X, target=[0, 1, 2])
    assert near(split.scores, whole.scores, 1e-10)
    torch.testing.assert_close(split.residual, whole.residual, rtol=0, atol=1e-12)


def test_of_several_inputs_it_draws_the_picture_and_counts_all():
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.known, self.body = nn.Linear(4, 3), rectifier()

        def forward(self, vector: Tensor, picture: Tensor) -> Tensor:
            return torch.relu(self.known(vector)) + self.body(picture)

    net, vector = seeded(Both), uniform(3, 4, dtype=torch.float64)
    a = pl.FullGrad()(pl.TorchModel(net), {"vector": vector, "picture": X}, target=1)
    assert near(a.scores, by_hand(net.body, X, 1)[0], 1e-10)
    assert float(a.residual.abs().max()) < 1e-10


@pytest.mark.doors
def test_inputs_without_places_are_refused():
    with pytest.raises(pl.ArgumentError, match=r"FullGrad takes maps to the places of the input, .* Got inputs \(4,\)"):
        pl.FullGrad()(pl.TorchModel(nn.Linear(4, 2)), uniform(2, 4))


@pytest.mark.doors
def test_several_pictures_are_refused():
    net = nn.Module()
    net.forward = lambda a, b: torch.stack([a.mean((1, 2, 3)), b.mean((1, 2, 3))], 1)
    with pytest.raises(pl.ArgumentError, match="this network takes several"):
        pl.FullGrad()(pl.TorchModel(net), {"a": uniform(1, 3, 4, 4), "b": uniform(1, 3, 4, 4)}, 0)

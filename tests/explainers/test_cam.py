import pytest
import torch
from tests.explainers.cells import X, alike, curved, flat, pooled, seeded
from torch import nn

import pellucid as pl


def weighed(net: nn.Module, weights: torch.Tensor) -> torch.Tensor:
    return torch.einsum("k,bkhw->bhw", weights, net[1](net[0](X)).detach())[:, None]


def test_it_is_the_classifiers_weights_times_the_channels():
    net = pooled()
    found = pl.CAM()(pl.TorchModel(net), X, target=2).scores
    assert alike(found, weighed(net, net[4].weight[2].detach()))
    assert float(found.min()) < 0 < float(found.max())


def test_its_mean_and_the_intercept_are_the_score():
    net = pooled()
    a = pl.CAM()(pl.TorchModel(net), X, target=[0, 1])
    torch.testing.assert_close(a.scores.mean((1, 2, 3)) + net[4].bias[:2].detach(), a.outputs[[0, 1], [0, 1]])


def test_a_margin_is_weighed_by_the_difference_of_the_weights():
    net = pooled()
    found = pl.CAM()(pl.TorchModel(net), X, target=pl.Margin(2, 0)).scores
    assert alike(found, weighed(net, (net[4].weight[2] - net[4].weight[0]).detach()))


def test_a_score_that_its_intercept_cancels_is_no_reason_to_refuse():
    net = pooled()
    with torch.no_grad():
        net[4].bias[2] -= net(X[:1])[0, 2]
        assert abs(float(net(X[:1])[0, 2])) < 1e-15
    found = pl.CAM()(pl.TorchModel(net), X[:1], target=2).scores
    assert alike(found, weighed(net, net[4].weight[2].detach())[:1])


@pytest.mark.parametrize("half", ["autocast", "network"])
def test_half_precision_is_no_reason_to_refuse_nor_to_agree(half):
    def model(net: nn.Module) -> pl.TorchModel:
        return pl.TorchModel(net.float(), precision="bfloat16") if half == "autocast" else pl.TorchModel(net.bfloat16())

    net, x = pooled(), X.float() if half == "autocast" else X.bfloat16()
    expected = weighed(net, net[4].weight[2].detach())
    found = pl.CAM()(model(net), x, target=2).scores
    assert float((found - expected).abs().max()) <= 8 * torch.finfo(torch.bfloat16).eps * float(expected.abs().max())
    with pytest.raises(pl.LayerError, match="linear map"):
        pl.CAM(layer="1")(model(blind_spot()), x, target=2)


def test_what_is_linear_between_the_layer_and_the_pool_changes_nothing():
    """A norm and a convolution of single cells: the weights are those of the whole linear map."""
    tail = seeded(lambda: nn.Sequential(nn.BatchNorm2d(6), nn.Conv2d(6, 4, 1)))
    tail[0].running_mean.uniform_(generator=torch.Generator().manual_seed(1))
    net = nn.Sequential(*pooled()[:2], *tail, nn.AdaptiveAvgPool2d(1), nn.Flatten(), seeded(lambda: nn.Linear(4, 3)))
    scale = net[2].weight / (net[2].running_var + net[2].eps).sqrt()
    weights = ((net[6].weight[1] @ net[3].weight[:, :, 0, 0]) * scale).detach()
    assert alike(pl.CAM(layer="1")(pl.TorchModel(net), X, target=1).scores, weighed(net, weights))


def hidden() -> nn.Module:
    return nn.Sequential(*pooled()[:4], seeded(lambda: nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))))


def greatest() -> nn.Module:
    return nn.Sequential(*pooled()[:2], nn.AdaptiveMaxPool2d(1), *pooled()[3:])


def blind_spot() -> nn.Module:
    """Alike at every cell of this input, but a square of the mean: only the score tells."""

    class Square(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x**2

    return nn.Sequential(*pooled()[:4], Square(), *pooled()[4:])


@pytest.mark.doors
@pytest.mark.parametrize("net", [flat(), curved(), hidden(), greatest(), blind_spot()],
                         ids=["flat", "curved", "hidden", "max-pool", "square"])  # fmt: skip
def test_other_heads_are_refused(net):
    with pytest.raises(pl.LayerError, match=r"linear map of the mean of each channel of '1'.*GradCAM\(\)"):
        pl.CAM(layer="1")(pl.TorchModel(net), X, target=1)


@pytest.mark.doors
def test_a_head_that_weighs_the_cells_is_refused_even_where_all_cells_are_alike():
    """On a level picture the score adds up, and the next picture would be refused."""
    with pytest.raises(pl.LayerError, match="linear map of the mean"):
        pl.CAM()(pl.TorchModel(flat()), torch.full_like(X, 0.5), target=1)


@pytest.mark.doors
def test_a_probability_is_no_linear_map_of_the_means():
    with pytest.raises(pl.LayerError, match="linear map"):
        pl.CAM()(pl.TorchModel(pooled()), X, target=pl.Probability(1))

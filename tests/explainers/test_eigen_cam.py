import torch
from tests.explainers.cells import X, alike, curved
from torch import nn

import pellucid as pl

C = torch.tensor([2.0, -1.0, 2.0], dtype=torch.float64)  # of length 3


def rank_one() -> pl.TorchModel:
    """Channel k of layer "0" is C_k times the picture."""
    net = nn.Sequential(nn.Conv2d(1, 3, 1, bias=False), nn.Flatten(), nn.LazyLinear(2)).double()
    net[0].weight.data = C.view(3, 1, 1, 1).clone()
    net(torch.zeros(1, 1, 4, 6, dtype=torch.float64))
    return pl.TorchModel(net)


PATTERN = (X[:1, :1, :4, :6] + 1).contiguous()


def test_an_activation_of_one_pattern_gives_that_pattern():
    assert float(PATTERN.sum()) > 0
    assert alike(pl.EigenCAM(layer="0")(rank_one(), PATTERN).scores, 3 * PATTERN)


def test_of_the_two_signs_it_takes_that_of_the_greater_sum():
    assert alike(pl.EigenCAM(layer="0")(rank_one(), -PATTERN).scores, 3 * PATTERN)
    mixed = PATTERN - PATTERN.mean() + 0.01
    assert alike(pl.EigenCAM(layer="0")(rank_one(), mixed).scores, 3 * mixed)


def test_it_is_not_centred():
    """Without its mean a level pattern would be nothing."""
    level = torch.full((1, 1, 4, 6), 0.5, dtype=torch.float64)
    assert alike(pl.EigenCAM(layer="0")(rank_one(), level).scores, 3 * level)


def test_it_is_the_direction_of_the_greatest_square_sum():
    net = curved()
    a = net[1](net[0](X)).detach().flatten(2).transpose(1, 2)
    values, vectors = torch.linalg.eigh(a.transpose(1, 2) @ a)
    assert float((values[:, -1] / values[:, -2]).min()) > 1.2, "one direction stands out"
    expected = (a @ vectors[:, :, -1:]).squeeze(-1)
    expected = (expected * expected.sum(1, keepdim=True).sign()).view(2, 1, 4, 5)
    assert alike(pl.EigenCAM(layer="1")(pl.TorchModel(net), X).scores, expected)


def test_the_target_does_not_enter():
    model = pl.TorchModel(curved())
    one, other = (pl.EigenCAM()(model, X, target=target) for target in (0, 1))
    assert torch.equal(one.scores, other.scores)
    assert one.cost == pl.Cost(forward=2), "one pass for each of two inputs, which is the prediction's"


def test_a_layer_that_gives_nothing_has_an_empty_map():
    found = pl.EigenCAM(layer="0")(rank_one(), torch.zeros_like(PATTERN))
    assert not found.scores.any()

from typing import Any

import numpy as np
import pytest
import torch
from tests.core.networks import Calling
from tests.explainers.cells import seeded
from tests.explainers.paths import near
from tests.oracles import Linear, uniform
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  # as networks write it

import pellucid as pl

ROWS = 10 * uniform(3, 4, seed=1, dtype=torch.float64) + 1
PICTURES = uniform(2, 3, 7, 9, seed=2, dtype=torch.float64)
STABLE = 1e-4
"""Each sum that is divided by is 1e-6 larger than itself, and here few are smaller than 0.1."""


def map_of(net: nn.Module, x: Tensor = ROWS, target: Any = 0) -> Tensor:
    return pl.ExcitationBackprop()(pl.TorchModel(net), x, target=target).scores


def dense(bias: bool = True) -> nn.Module:
    return seeded(lambda: nn.Sequential(nn.Linear(4, 16, bias=bias), nn.ReLU(), nn.Linear(16, 3, bias=bias)))


def won(below: np.ndarray, weight: np.ndarray, above: np.ndarray) -> np.ndarray:
    """P(a_i) = sum_j a_i w+_ij / sum_k a_k w+_kj P(a_j), for weights (j, i), sum by sum."""
    found = np.zeros_like(below)
    for j in range(len(above)):
        parts = [below[i] * max(weight[j, i], 0) for i in range(len(below))]
        for i in range(len(below)):
            if sum(parts):
                found[i] += parts[i] / sum(parts) * above[j]
    return found


def two_layers(net: nn.Module, x: Tensor, target: int) -> Tensor:
    """By loops over the units of a network of two layers with a ReLU between them."""
    first, second = net[0].weight.detach().numpy(), net[2].weight.detach().numpy()
    found = []
    for row in x:
        hidden = net[:2](row[None])[0].detach().numpy()
        top = np.zeros(3)
        top[target] = 1
        found.append(won(row.numpy(), first, won(hidden, second, top)))
    return torch.from_numpy(np.stack(found))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("target", [0, 1, 2])
def test_of_two_layers_it_is_the_chance_of_each_way_sum_by_sum(bias, target):
    net = dense(bias)
    expected = two_layers(net, ROWS, target)
    assert near(map_of(net, target=target), expected, STABLE)


@pytest.mark.parametrize("target", [0, 1, 2])
def test_for_input_of_zero_or_more_it_is_a_probability(target):
    net = seeded(
        lambda: nn.Sequential(
            nn.Conv2d(3, 5, 3), nn.ReLU(), nn.MaxPool2d(2, 1), nn.Conv2d(5, 6, 3, 2), nn.ReLU(), nn.AvgPool2d((1, 2)),
            nn.Flatten(), nn.Linear(6, 3),
        )
    )  # fmt: skip
    with torch.no_grad():  # so that each unit has something that speaks for it
        for module in net:
            if isinstance(module, nn.Conv2d | nn.Linear):
                module.weight += 0.1
    a = pl.ExcitationBackprop()(pl.TorchModel(net), PICTURES, target=target)
    assert bool((a.scores >= 0).all())
    torch.testing.assert_close(a.scores.flatten(1).sum(1), torch.ones(2, dtype=torch.float64), rtol=0, atol=STABLE)
    torch.testing.assert_close(a.residual, a.scores.flatten(1).sum(1) - 1, rtol=0, atol=1e-12)


def test_a_winner_for_which_nothing_spoke_hands_nothing_on():
    """All that speaks for the second class is its bias, which wins nothing."""
    weight = torch.tensor([[1.0, 2.0], [-1.0, -3.0]], dtype=torch.float64)
    net = Linear(weight, torch.tensor([0.0, 9.0], dtype=torch.float64))
    x = torch.tensor([[1.0, 1.0], [2.0, 0.5]], dtype=torch.float64)
    a = pl.ExcitationBackprop()(pl.TorchModel(net), x, target=1)
    assert not a.scores.any()
    assert a.residual.tolist() == [-1.0, -1.0]
    torch.testing.assert_close(map_of(net, x), torch.tensor([[1, 2], [2, 1]], dtype=torch.float64) / 3,
                               rtol=1e-5, atol=0)  # fmt: skip


def test_of_a_linear_layer_it_is_each_share_of_what_spoke_for_the_class():
    weight = 2 * uniform(3, 4, dtype=torch.float64) - 1
    for target in range(3):
        parts = ROWS * weight[target].clamp(min=0)
        expected = parts / parts.sum(1, keepdim=True)
        assert near(map_of(Linear(weight), target=target), expected, STABLE)


def test_biases_win_nothing():
    one, other = dense(), dense()
    with torch.no_grad():
        other[2].bias += torch.tensor([1.0, -3.0, 0.3])
    for target in range(3):
        assert near(map_of(other, target=target), map_of(one, target=target), STABLE)


def test_a_negative_score_has_its_reasons_too():
    """What wins is a unit, whatever its score is."""
    net = dense()
    with torch.no_grad():
        net[2].bias -= 50
        assert bool((net(ROWS) < -40).all())
    assert near(map_of(net, target=1), two_layers(net, ROWS, 1), STABLE)


def test_of_a_score_of_exactly_zero_nothing_is_known():
    net = Linear(torch.tensor([[1.0, -1.0]], dtype=torch.float64))
    found = map_of(net, torch.ones(1, 2, dtype=torch.float64))
    assert found.isfinite().all()


def test_a_convolution_is_its_matrix():
    """Each place by each place, against a network of two layers written as matrices."""
    net = seeded(lambda: nn.Sequential(nn.Conv2d(2, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(36, 3)))
    x = uniform(2, 2, 4, 5, seed=3, dtype=torch.float64)
    eye = torch.eye(40, dtype=torch.float64).view(40, 2, 4, 5)
    matrix = F.conv2d(eye, net[0].weight).flatten(1).T.detach()
    bias = net[0].bias.detach().repeat_interleave(12)
    plain = nn.Sequential(
        Linear(matrix, bias).linear, nn.ReLU(), Linear(net[3].weight.detach(), net[3].bias.detach()).linear
    )
    expected = two_layers(plain, x.flatten(1), 2)
    assert near(map_of(net, x, target=2), expected.view_as(x), STABLE)


def test_where_ways_join_each_has_its_share():
    """A sum y + x divides in proportion to both, a maximum gives all to the largest."""

    def forward(net: Any, x: Tensor) -> Tensor:
        return torch.stack([2 * x[:, 0] + 3 * x[:, 1], torch.maximum(x[:, 2], x[:, 3])], 1).sum(1, keepdim=True)

    x = torch.tensor([[1.0, 1.0, 4.0, 5.0], [2.0, 0.0, 6.0, 1.0]], dtype=torch.float64)
    expected = torch.tensor([[0.2, 0.3, 0, 0.5], [0.4, 0, 0.6, 0]], dtype=torch.float64)
    assert near(map_of(Calling(forward), x), expected, STABLE)


def test_the_map_of_an_input_does_not_depend_on_its_company():
    net = dense()
    whole = pl.ExcitationBackprop()(pl.TorchModel(net, micro_batch=2), ROWS, target=[0, 2, 1]).scores
    for i, target in enumerate([0, 2, 1]):
        assert near(whole[i : i + 1], map_of(net, ROWS[i : i + 1], target), 1e-11)


@pytest.mark.doors
def test_what_has_no_rule_is_named():
    net = Calling(lambda net, x: torch.fft.rfft(net.first(x)).real, first=seeded(lambda: nn.Linear(4, 4)))
    with pytest.raises(pl.RuleError, match="no rule for the operation '_fft_r2c'"):
        map_of(net)


def test_its_card_says_for_what_it_is_a_probability():
    card = pl.ExcitationBackprop().card
    assert card.unit == "probability"
    assert "a probability for activations of 0 or more only" in card.caveats

import math

import pytest
import torch
from tests.explainers.paths import Several, near, picture_net, seeded, several, tanh_net
from tests.explainers.paths import X as PICTURES
from tests.oracles import Linear, Power, uniform
from torch import Tensor, nn

import pellucid as pl

X = torch.linspace(-1, 1.4, 9, dtype=torch.float64)[None]
START = 0.3


class Seen(nn.Module):
    """Passes on, and remembers the points at which a gradient was asked for."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.points: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        if x.requires_grad:
            self.points.append(x.detach().clone())
        return self.net(x)


def way(net: nn.Module, x: Tensor, **settings: object) -> tuple[pl.Attribution, Tensor]:
    """The map, and how far each feature was on its way at each point, (points, features)."""
    seen = Seen(net)
    explain = pl.GuidedIntegratedGradients(baseline=pl.Constant(START), **settings)
    model = pl.TorchModel(seen)
    explain(model, x, target=0)  # the diagnosis of this shape asks for gradients, too
    seen.points.clear()
    a = explain(model, x, target=0)
    return a, (torch.cat(seen.points) - START) / (x - START)


@pytest.mark.parametrize("settings", [{}, {"fraction": 0.5, "max_distance": 1.0}, {"n_steps": 1}], ids=str)
def test_of_a_linear_network_it_is_the_weight_times_the_way(settings):
    weight, x = uniform(2, 9, dtype=torch.float64) - 0.5, torch.cat([X, 2 * X])
    explain = pl.GuidedIntegratedGradients(baseline=pl.Constant(START), **settings)
    a = explain(pl.TorchModel(Linear(weight)), x, target=[1, 0])
    torch.testing.assert_close(a.scores, weight[[1, 0]] * (x - START), rtol=1e-6, atol=1e-9)
    assert float(a.residual.abs().max()) < 1e-7


def test_where_all_features_move_at_once_it_is_the_left_sum_of_the_straight_way():
    """Of x^2 from 0 in n steps: x^2 (n - 1) / n."""
    explain = pl.GuidedIntegratedGradients(n_steps=8, fraction=1.0, max_distance=1.0)
    a = explain(pl.TorchModel(Power(2, 1.0)), X, target=0)
    torch.testing.assert_close(a.scores, X**2 * 7 / 8, rtol=1e-9, atol=1e-12)


def test_the_feature_of_least_gradient_goes_first():
    """Ways of 1 and 3 in four steps of length 1: the first feature takes the first, the second all others."""
    weight = torch.tensor([[0.1, -5.0]], dtype=torch.float64)
    x = torch.tensor([[START + 1, START - 3]], dtype=torch.float64)
    _, shares = way(Linear(weight), x, n_steps=4, fraction=0.5, max_distance=1.0)
    expected = torch.tensor([[0, 0], [1, 0], [1, 1 / 3], [1, 2 / 3]], dtype=torch.float64)
    torch.testing.assert_close(shares, expected, rtol=0, atol=1e-8)
    _, shares = way(Linear(weight.flip(1)), x, n_steps=4, fraction=0.5, max_distance=1.0)
    expected = torch.tensor([[0, 0], [0, 1 / 3], [0, 2 / 3], [0, 1]], dtype=torch.float64)
    torch.testing.assert_close(shares, expected, rtol=0, atol=1e-8)


def test_it_may_go_ahead_and_fall_behind_by_the_distance_and_no_more():
    """Equal ways, ten steps: the first feature is ahead by 0.15, the second behind by as much, until the end is near.
    After k steps both together have gone k / 10.
    """
    weight = torch.tensor([[0.1, 5.0]], dtype=torch.float64)
    x = torch.full((1, 2), START + 1, dtype=torch.float64)
    _, shares = way(Linear(weight), x, n_steps=10, fraction=0.5, max_distance=0.15)
    first = torch.tensor([0, 0.2, 0.35, 0.45, 0.55, 0.65, 0.75, 0.85, 0.95, 1.0], dtype=torch.float64)
    expected = torch.stack([first, torch.arange(10, dtype=torch.float64) / 5 - first], 1)
    torch.testing.assert_close(shares, expected, rtol=0, atol=1e-8)


@pytest.mark.parametrize("reach", [0.02, 0.1, 0.4, 1.0])
def test_no_point_leaves_the_band_and_the_way_gets_evenly_shorter(reach):
    """On a network whose gradients change their order on the way; at point k, k / n of the L1 distance is done."""
    x, n = PICTURES[:1], 40
    _, shares = way(picture_net(), x, n_steps=n, max_distance=reach)
    assert shares.shape == (n, *x.shape[1:])
    done = torch.arange(n, dtype=torch.float64).view(-1, 1, 1, 1) / n
    low, high = (done - reach).clamp(min=0), (done + reach).clamp(max=1)
    assert (shares[1:] >= low[1:] - 1e-9).all()
    assert (shares[1:] <= high[1:] + 1e-9).all()
    lengths = (x - START).abs()
    left = ((1 - shares) * lengths).flatten(1).sum(1)
    torch.testing.assert_close(left, (1 - done.flatten()) * lengths.sum(), rtol=0, atol=1e-7 * float(lengths.sum()))
    assert (shares[1:] - shares[:-1] >= -1e-12).all(), "nothing goes back"
    assert float((shares - done).abs().max()) > 0.9 * min(reach, 0.5), "the band is made use of"


def test_at_each_step_the_fraction_of_least_gradient_moves():
    """Eight features of equal ways and gradients 1 … 8, a half at once: the lower four share the first two steps alone.
    What has arrived counts as that of largest gradient, so then the half is of those that are left, all four.
    """
    weight = torch.tensor([[4.0, 8, 1, 6, 3, 7, 2, 5]], dtype=torch.float64)
    x = torch.full((1, 8), START - 1, dtype=torch.float64)
    _, shares = way(Linear(weight), x, n_steps=4, fraction=0.5, max_distance=1.0)
    low = (weight <= 4).double()
    expected = torch.cat([0 * low, low / 2, low, low + (1 - low) / 2])
    torch.testing.assert_close(shares, expected, rtol=0, atol=1e-8)


@pytest.mark.parametrize("reach", [0.02, 1.0])
def test_on_smooth_networks_it_sums_to_the_change_as_steps_grow(reach):
    model, left = pl.TorchModel(picture_net()), []
    for n in (25, 100, 400):
        explain = pl.GuidedIntegratedGradients(n_steps=n, max_distance=reach)
        a = explain(model, PICTURES, target=1)
        change = torch.tensor(a.recipe.notes["change"], dtype=torch.float64)
        torch.testing.assert_close(a.residual, a.scores.flatten(1).sum(1) - change, rtol=0, atol=1e-12)
        left.append(float((a.residual / change).abs().max()))
    assert left[2] < left[1] < left[0]
    assert left[2] < min(left[0] / 5, 0.02)


def test_with_a_narrow_band_it_comes_to_integrated_gradients():
    """Reach 1e-3 moves every point by no more than this share of its way."""
    model = pl.TorchModel(picture_net())
    straight = pl.IntegratedGradients()(model, PICTURES, target=1).scores
    off = []
    for n, reach in ((50, 0.02), (500, 0.002)):
        found = pl.GuidedIntegratedGradients(n_steps=n, max_distance=reach)(model, PICTURES, target=1).scores
        off.append(float((found - straight).abs().max() / straight.abs().max()))
    assert off[1] < off[0] / 5
    assert off[1] < 0.01


@pytest.mark.parametrize("rows", [1, 2, 3])
def test_neither_the_micro_batch_nor_the_company_changes_a_map(rows):
    explain = pl.GuidedIntegratedGradients(n_steps=30)
    whole = explain(pl.TorchModel(picture_net()), PICTURES, target=[0, 1, 2])
    for i in range(3):
        alone = explain(pl.TorchModel(picture_net(), micro_batch=rows), PICTURES[i : i + 1], target=i)
        assert near(alone.scores[0], whole.scores[i], 1e-10)
    split = explain(pl.TorchModel(picture_net(), micro_batch=rows), PICTURES, target=[0, 1, 2])
    assert near(split.scores, whole.scores, 1e-10)


def test_what_equals_the_baseline_stays_and_gets_nothing():
    x = X.clone()
    x[0, [0, 5]] = START
    a, shares = way(tanh_net(9), x, n_steps=20)
    assert (a.scores == 0).tolist() == [[i in (0, 5) for i in range(9)]]
    assert shares[:, [0, 5]].isnan().all(), "0 / 0: no way was gone"
    nowhere, _ = way(tanh_net(9), torch.full_like(x, START), n_steps=20)
    assert not nowhere.scores.any()
    assert nowhere.residual.tolist() == [0.0]


def test_features_without_gradient_go_first_and_get_nothing():
    weight = torch.tensor([[0.0, 2.0, 0.0, -1.0]], dtype=torch.float64)
    x = torch.tensor([[1.0, 2.0, -3.0, 1.0]], dtype=torch.float64)
    a, shares = way(Linear(weight), x, n_steps=100, max_distance=1.0)
    torch.testing.assert_close(a.scores, weight * (x - START), rtol=1e-6, atol=0)
    ends = [int((shares[:, i] > 1 - 1e-6).nonzero()[0]) for i in (0, 2, 3)]
    assert max(ends[:2]) < ends[2]
    assert float(shares[:, 1].max()) < 1


def test_a_gradient_that_is_no_number_goes_last_and_shows():
    """The slope of |x|^(1/2) at its kink is 0 times infinity. Once no feature had a least gradient, and none moved."""

    class Root(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x[:, :1].abs().sqrt() + 2 * x[:, 1:]

    x = torch.tensor([[0.25, -0.5]])
    a = pl.GuidedIntegratedGradients(n_steps=5)(pl.TorchModel(Root()), x, target=0)
    assert a.scores[0, 0].isnan()
    assert float(a.scores[0, 1]) == pytest.approx(-1)
    assert "not-finite-map" in {finding.code for finding in a.findings}


def test_of_several_inputs_what_is_held_does_not_move():
    a = pl.GuidedIntegratedGradients(n_steps=400)(pl.TorchModel(seeded(Several)), several(), target=1)
    assert list(a.parts) == ["vector", "picture"]
    assert not a.scores[:, -2:].any()
    change = torch.tensor(a.recipe.notes["change"], dtype=torch.float64)
    assert float((a.residual / change).abs().max()) < 0.05


def test_its_progress_counts_points():
    seen: list[pl.Progress] = []
    pl.GuidedIntegratedGradients(n_steps=4)(pl.TorchModel(picture_net()), PICTURES, target=0, progress=seen.append)
    assert [(p.done, p.total) for p in seen] == [(3, 12), (6, 12), (9, 12), (12, 12)]


@pytest.mark.doors
@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"baseline": 0}, "`baseline` is one such as"),
        ({"n_steps": 0}, "`n_steps` is a whole number, 1 or more"),
        ({"fraction": 0.0}, "`fraction` is a share, over 0 up to 1. Got 0.0"),
        ({"fraction": 25}, "`fraction` is a share, over 0 up to 1. Got 25"),
        ({"max_distance": math.nan}, "`max_distance` is a share"),
        ({"max_distance": True}, "`max_distance` is a share, over 0 up to 1. Got True"),
    ],
)
def test_wrong_settings_say_what_to_write(settings, words):
    with pytest.raises(pl.ArgumentError, match=words):
        pl.GuidedIntegratedGradients(**settings)

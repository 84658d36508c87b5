import pytest
import torch
from tests.explainers.paths import Several, X, gradient, near, picture_net, seeded, several, tanh_net
from tests.oracles import Power, conv_net, uniform
from torch import Tensor, nn

import pellucid as pl

V = torch.linspace(-1, 1.4, 9, dtype=torch.float64)[None]
START = pl.Constant(0.3)


@pytest.mark.parametrize("n", [1, 2, 9])
def test_where_the_score_is_linear_in_the_units_each_gets_its_weight_times_its_change(n):
    net = tanh_net(9)
    a = pl.Conductance(layer="1", baseline=START, n_steps=n)(pl.TorchModel(net), V, target=1)
    change = (net[:2](V) - net[:2](torch.full_like(V, 0.3))).detach()
    assert near(a.scores, net[2].weight[1].detach() * change, 1e-12)
    assert float(a.residual.abs()) < 1e-12


def test_where_units_do_not_act_together_each_gets_what_it_changes():
    """S = sum v_k tanh(u_k): v_k (tanh(u_k) - tanh(u'_k)). The trapezoid rule's error falls with the square of n."""
    net, off = tanh_net(9), []
    expected = net[2].weight[1].detach() * (net[:2](V) - net[:2](torch.full_like(V, 0.3))).detach()
    for n in (10, 40, 160):
        a = pl.Conductance(layer="0", baseline=START, n_steps=n)(pl.TorchModel(net), V, target=1)
        off.append(float((a.scores - expected).abs().max() / expected.abs().max()))
    assert off[1] == pytest.approx(off[0] / 16, rel=0.1)
    assert off[2] == pytest.approx(off[1] / 16, rel=0.1)
    assert off[2] < 1e-4


def test_it_is_the_integral_of_the_slope_by_each_unit_along_the_way():
    """By another rule: the slope in the middle of each of 2000 parts, times what the unit changes from end to end."""
    net, x = picture_net(), X[:1]
    a = pl.Conductance(layer="1", n_steps=200)(pl.TorchModel(net), x, target=2)
    ends = torch.linspace(0, 1, 2001, dtype=torch.float64).view(-1, 1, 1, 1)
    middles = (ends[1:] + ends[:-1]) / 2
    units = net[:2](ends * x).detach()
    slope = gradient(lambda u: net[2:](u)[:, 2], net[:2](middles * x).detach())
    assert near(a.scores, (slope * units.diff(dim=0)).sum(0, keepdim=True), 1e-4)


@pytest.mark.parametrize("layer", ["0", "1", "2", "3"])
def test_over_a_layer_that_every_path_passes_it_sums_to_the_change(layer):
    net, left = picture_net(), []
    for n in (20, 80):
        a = pl.Conductance(layer=layer, baseline=START, n_steps=n)(pl.TorchModel(net), X, target=[0, 1, 2])
        whole = (net(X) - net(torch.full_like(X, 0.3)))[torch.arange(3), [0, 1, 2]].detach()
        torch.testing.assert_close(a.residual, a.scores.flatten(1).sum(1) - whole, rtol=0, atol=1e-12)
        left.append(float((a.residual / whole).abs().max()))
    assert left[1] < 1e-3
    assert layer == "3" or left[1] == pytest.approx(left[0] / 16, rel=0.3)


def test_over_kinks_the_residual_falls_with_the_steps():
    model, x = pl.TorchModel(conv_net(dtype=torch.float64)), uniform(8, 3, 9, 9, dtype=torch.float64)
    left = [
        float(pl.Conductance(layer="2", n_steps=n)(model, x, target=0).residual.square().mean().sqrt())
        for n in (20, 80, 320)
    ]
    assert left[1] < left[0] / 2
    assert left[2] < left[1] / 2


def test_where_a_path_leads_around_the_layer_the_residual_is_what_goes_there():
    """y = A x + B x: the layer A carries its own part of the change."""

    class Beside(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.other = nn.Linear(9, 2), nn.Linear(9, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.one(x) + self.other(x)

    net = seeded(Beside)
    a = pl.Conductance(layer="one", baseline=START)(pl.TorchModel(net), V, target=1)
    parts = [(f(V) - f(torch.full_like(V, 0.3)))[0].detach() for f in (net.one, net.other)]
    torch.testing.assert_close(a.scores[0], parts[0] * torch.tensor([0.0, 1.0]), rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(a.residual[0], -parts[1][1], rtol=1e-10, atol=0)


def test_at_a_first_layer_that_does_nothing_it_is_integrated_gradients():
    """Of x^2 the trapezoid rule is exact; of x^3 from 0 it is too large by x^3 / (2 n^2)."""
    for p, error in ((2, 0.0), (3, 1 / (2 * 7**2))):
        net = nn.Sequential(nn.Identity(), Power(p, 1.0, 2.0))
        a = pl.Conductance(layer="0", n_steps=7)(pl.TorchModel(net), V, target=1)
        torch.testing.assert_close(a.scores, 2 * V**p * (1 + error), rtol=1e-12, atol=1e-14)
    net = nn.Sequential(nn.Identity(), *picture_net())
    a = pl.Conductance(layer="0", n_steps=400, baseline=START)(pl.TorchModel(net), X, target=1)
    expected = pl.IntegratedGradients(baseline=START)(pl.TorchModel(net), X, target=1)
    assert near(a.scores, expected.scores, 1e-4)


@pytest.mark.parametrize("rows", [1, 2, 5, 7, 64])
def test_neither_the_micro_batch_nor_the_company_changes_a_map(rows):
    """Micro-batches of five part the seven points of each input."""
    net, explain = picture_net(), pl.Conductance(layer="2", n_steps=6)
    whole = explain(pl.TorchModel(net), X, target=[0, 1, 2])
    split = explain(pl.TorchModel(net, micro_batch=rows), X, target=[0, 1, 2])
    assert near(split.scores, whole.scores, 1e-12)
    torch.testing.assert_close(split.residual, whole.residual, rtol=0, atol=1e-13)
    for i in range(3):
        alone = explain(pl.TorchModel(net, micro_batch=rows), X[i : i + 1], target=i)
        assert near(alone.scores[0], whole.scores[i], 1e-12)


def test_what_does_not_move_gets_nothing():
    a = pl.Conductance(layer="0", baseline=START)(pl.TorchModel(tanh_net(9)), torch.full_like(V, 0.3), target=0)
    assert not a.scores.any()
    assert a.residual.tolist() == [0.0]


def test_the_default_is_the_last_layer_of_cells_before_pooling():
    net = seeded(
        lambda: nn.Sequential(
            nn.Conv2d(3, 4, 3, 2), nn.ReLU(), nn.Conv2d(4, 6, 2), nn.Tanh(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        )
    )
    a = pl.Conductance(n_steps=3)(pl.TorchModel(net), X, target=0)
    assert a.recipe.notes["layer"] == ["3"] * 3
    assert a.scores.shape == (3, 6, 3, 4)


def test_of_several_inputs_what_is_held_does_not_move():
    net, parts = seeded(Several), several()
    a = pl.Conductance(layer="group", n_steps=5)(pl.TorchModel(net), parts, target=1)
    assert not a.scores.any(), "an embedding of what is held gives the same all along"
    known = pl.Conductance(layer="known", n_steps=300)(pl.TorchModel(net), parts, target=1)
    seen = pl.Conductance(layer="seen", n_steps=300)(pl.TorchModel(net), parts, target=1)
    change = torch.tensor(known.recipe.notes["change"], dtype=torch.float64)
    both = known.scores.sum(1) + seen.scores.flatten(1).sum(1)
    torch.testing.assert_close(both, change, rtol=1e-4, atol=0)


def test_its_progress_counts_points():
    told: list[pl.Progress] = []
    model = pl.TorchModel(picture_net(), micro_batch=5)
    pl.Conductance(layer="1", n_steps=3)(model, X, target=0, progress=told.append)
    assert [(p.done, p.total) for p in told] == [(5, 12), (10, 12), (12, 12)]


@pytest.mark.doors
@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"baseline": 0.0}, "`baseline` is one such as"),
        ({"n_steps": 0}, "`n_steps` is a whole number, 1 or more"),
        ({"layer": ("1", "2")}, "`layer` is the name of a module"),
    ],
)
def test_wrong_settings_say_what_to_write(settings, words):
    with pytest.raises(pl.ArgumentError, match=words):
        pl.Conductance(**settings)

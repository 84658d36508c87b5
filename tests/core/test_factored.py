"""Factored gradients against factors computed by hand, and their bias against its closed form."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from tests.oracles import Linear, Power, uniform
from torch import Tensor, nn

import pellucid as pl
from pellucid.core.estimator import Finished
from pellucid.core.factored import beside_some
from pellucid.core.moments import Moments
from pellucid.core.random import Key, normal
from pellucid.core.recipe import decode, encode
from pellucid.core.stopping import counts

FIRST = ("first",)


class Pointwise(nn.Module):
    """A function of each element, as a module that can be named."""

    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class Quartic(nn.Module):
    """f = sum_j h_j^2 / 2 with h = x^2 / 2: the factors of the gradient, J1 = x and d = h, go together.

    E[g(x + e)] = (x^3 + 3 x s^2) / 2. Over m/2 mirrored pairs mean J1 = x and mean d = (x^2 + mean e^2) / 2, so the
    factored mean is x (x^2 + s^2) / 2 and its bias - x s^2.
    """

    def __init__(self) -> None:
        super().__init__()
        self.first = Pointwise(lambda x: x**2 / 2)

    def forward(self, x: Tensor) -> Tensor:
        return (self.first(x) ** 2 / 2).flatten(1).sum(1, keepdim=True)


class Segments(nn.Module):
    """f = sum_k v_k last(first(W x)_k)."""

    def __init__(self, first=torch.tanh, last=nn.functional.softplus) -> None:
        super().__init__()
        self.weight = nn.Parameter(uniform(5, 6, seed=1, dtype=torch.float64) * 4 - 2)
        self.v = nn.Parameter(uniform(5, seed=2, dtype=torch.float64) + 0.5)
        self.first, self.last = Pointwise(first), Pointwise(last)

    def forward(self, x: Tensor) -> Tensor:
        return (self.last(self.first(x @ self.weight.T)) * self.v).sum(1, keepdim=True)


def conv_net() -> nn.Module:
    """Two cuts, after the max-pool and before the strided convolution; random but fixed weights."""
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(),
            nn.Conv2d(4, 4, 3, 2, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2),
        )  # fmt: skip


def smooth(estimator: pl.Factored | pl.Antithetic | pl.Mean, n: int | pl.Until = 48, **settings) -> pl.SmoothGrad:
    return pl.SmoothGrad(n_samples=n, estimator=estimator, **settings)


def named(group: int | None = None) -> pl.Factored:
    return pl.Factored(cuts=FIRST, group=group)


def finished(a: pl.Attribution, estimator: pl.Factored) -> Finished:
    """What the estimator says of the draws that a result keeps."""
    return estimator.finish(Moments.of(a.estimate.state, range(len(a)), a.scores, 2))


MODEL = pl.TorchModel(conv_net())
X = uniform(3, 3, 12, 12)
SIGMA = 0.2
LEVEL = pl.NoiseLevel.absolute(SIGMA)


# --- the formula


@pytest.mark.parametrize("group", [2, 4, 12])
def test_it_is_the_product_of_the_factors_means_over_the_mirrored_pairs_of_each_group(group):
    """1/G sum_groups (1/m sum_i J1_i') (1/m sum_j d_j), with x + e_j, x - e_j from the stream of the input."""
    net, x = Segments(), uniform(2, 6, seed=3, dtype=torch.float64)
    a = smooth(named(group), 24, noise_level=LEVEL, seed=7)(pl.TorchModel(net), x)
    w, v = net.weight.detach().numpy(), net.v.detach().numpy()
    for row in range(2):
        stream = Key.of(x[row]).stream(7)
        maps = []
        for start in range(0, 12, group // 2):
            jacobians, downstream = [], []
            for j in range(start, start + group // 2):
                for sign in (1, -1):
                    h = np.tanh(w @ (x[row].numpy() + sign * SIGMA * normal(stream, j, (6,)).astype(np.float64)))
                    jacobians.append(((1 - h**2)[:, None] * w).T)
                    downstream.append(v / (1 + np.exp(-h)))
            maps.append(np.mean(jacobians, 0) @ np.mean(downstream, 0))
        np.testing.assert_allclose(a.scores[row], np.mean(maps, 0), rtol=1e-12)


@pytest.mark.parametrize(
    "net",
    [
        pytest.param(Segments(first=lambda h: 2 * h + 1), id="the first segment is linear"),
        pytest.param(Segments(last=lambda h: 3 * h - 1), id="the last segment is linear"),
    ],
)
def test_where_one_factor_is_constant_it_is_the_plain_mean_of_the_same_pairs(net):
    model, x = pl.TorchModel(net), uniform(2, 6, dtype=torch.float64)
    factored, plain = (smooth(e, 24, noise_level=LEVEL)(model, x) for e in (named(6), pl.Antithetic()))
    torch.testing.assert_close(factored.scores, plain.scores, rtol=1e-12, atol=0)
    assert float(finished(factored, named(6)).bias.max()) < 1e-24


def test_where_neither_factor_is_constant_it_is_not():
    model, x = pl.TorchModel(Segments()), uniform(2, 6, dtype=torch.float64)
    factored, plain = (smooth(e, 24, noise_level=LEVEL)(model, x).scores for e in (named(6), pl.Antithetic()))
    assert float((factored - plain).abs().max()) > 1e-3 * float(plain.abs().max())


def test_two_cuts_average_three_factors():
    """The cut in the middle of a network whose other cut is a linear step away changes nothing."""
    net = nn.Sequential()
    for name, part in {"a": Pointwise(torch.tanh), "b": Pointwise(lambda h: 2 * h), "c": Segments()}.items():
        net.add_module(name, part)
    x = uniform(1, 6, dtype=torch.float64)
    maps = {
        cuts: smooth(pl.Factored(cuts=cuts, group=6), 24, noise_level=LEVEL)(pl.TorchModel(net), x).scores
        for cuts in (("a",), ("b",), ("a", "b"), ("b", "c.first"))
    }
    torch.testing.assert_close(maps["a",], maps["b",], rtol=1e-12, atol=0)
    torch.testing.assert_close(maps["a",], maps["a", "b"], rtol=1e-12, atol=0)
    assert not torch.allclose(maps["b",], maps["b", "c.first"], rtol=1e-6)


class Watching(nn.Module):
    """Remembers the rows that it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.first = Pointwise(torch.tanh)
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(x.detach().clone())
        return self.first(x).flatten(1).sum(1, keepdim=True)


@pytest.mark.parametrize("estimator", [pl.Antithetic(), named(4), named(12)])
@pytest.mark.parametrize("micro_batch", [12, 40, 100])
def test_mirrored_pairs_are_neighbours_and_share_one_sample_of_the_stream(estimator, micro_batch):
    """x + e_j beside x - e_j for each input, with e_j the samples 0 .. n/2 - 1 of its stream, each once."""
    net, x = Watching(), uniform(2, 6)
    smooth(estimator, 24, noise_level=LEVEL, seed=3)(pl.TorchModel(net, micro_batch=micro_batch), x)
    pairs = torch.cat(net.seen)[-48:].unflatten(0, (24, 2))  # before them the clean prediction and the probe
    for one in x:
        e = torch.stack([SIGMA * torch.from_numpy(normal(Key.of(one).stream(3), j, (6,))) for j in range(12)])
        expected = torch.stack([one + e, one - e], 1)
        own = pairs[(pairs.mean(1) - one).abs().amax(1) < 1e-6]
        order = [rows[:, 0, 0].argsort() for rows in (own, expected)]
        torch.testing.assert_close(own[order[0]], expected[order[1]], rtol=0, atol=1e-6)


def test_what_is_odd_in_the_noise_cancels_within_a_pair():
    """The gradient of a cubic: 3 (x + e)^2, whose odd part 6 x e is most of its spread."""
    x = uniform(1, 500, dtype=torch.float64) + 2
    pairs, single = (
        smooth(e, 40, noise_level=LEVEL)(pl.TorchModel(Power(3, 1.0)), x) for e in (pl.Antithetic(), pl.Mean())
    )
    # Var of a pair's mean is 18 s^4, of one sample 36 x^2 s^2 + 18 s^4.
    torch.testing.assert_close(
        pairs.standard_error.square().mean(), torch.tensor(18 * SIGMA**4 / 20).double(), rtol=0.1, atol=0
    )
    expected = (36 * x**2 * SIGMA**2 + 18 * SIGMA**4).mean() / 40
    torch.testing.assert_close(single.standard_error.square().mean(), expected, rtol=0.1, atol=0)


# --- its error


X_QUARTIC = 0.5 + uniform(60, 100, dtype=torch.float64)
TRUE_QUARTIC = (X_QUARTIC**3 + 3 * X_QUARTIC * SIGMA**2) / 2


def quartic(n: int | pl.Until = 48, group: int | None = None) -> pl.Attribution:
    """60 inputs, each with noise of its own."""
    return smooth(named(group), n, noise_level=LEVEL)(pl.TorchModel(Quartic()), X_QUARTIC)


def test_the_closed_form_of_a_biased_factored_mean():
    """x (x^2 + s^2) / 2 in place of x (x^2 + 3 s^2) / 2, with x^2 s^4 / 2 / pairs as its variance."""
    a = quartic()
    error = X_QUARTIC * SIGMA**2 / np.sqrt(2 * 24)
    off = (a.scores - X_QUARTIC * (X_QUARTIC**2 + SIGMA**2) / 2) / error
    assert abs(float(off.square().mean()) - 1) < 6 * np.sqrt(12 / off.numel())  # a chi-squared is somewhat skewed
    assert float((a.scores - TRUE_QUARTIC).mean()) == pytest.approx(float(-X_QUARTIC.mean() * SIGMA**2), rel=0.05)


@pytest.mark.parametrize(("n", "group"), [(16, None), (48, None), (48, 2), (96, 12)])
def test_the_estimated_bias_is_unbiased(n, group):
    """E = mean x^2 s^4 per element, from products of the gaps of independent groups."""
    found = finished(quartic(n, group), named(group)).bias
    expected = X_QUARTIC.square().mean(1) * SIGMA**4
    apart = found - expected
    assert abs(float(apart.mean())) < 4 * float(apart.std()) / np.sqrt(len(apart))
    assert float(apart.std()) < float(expected.mean())


def test_where_there_is_no_bias_half_of_its_estimates_are_zero():
    """400 runs of plain and factored maps with one truth: the products of gaps are as often negative."""
    rng = np.random.default_rng(0)
    draws, plain = torch.from_numpy(rng.standard_normal((2, 400, 8, 200)))
    zeros = float((of(draws, plain).bias == 0).double().mean())
    assert abs(zeros - 0.5) < 4 * 0.5 / np.sqrt(400) + 0.03  # a sum of products of 200 normals is nearly even


def of(draws: Tensor, plain: Tensor) -> Finished:
    """The factored estimate of draws and of the plain maps beside some of them, (inputs, draws, *features)."""
    moments = Moments(draws[:, 0], 2)
    for i, (draw, beside) in enumerate(zip(draws.unbind(1), plain.unbind(1), strict=True)):
        moments.add(draw, beside if beside_some(i) else None)
    return pl.Factored().finish(moments)


@pytest.mark.parametrize("offset", [0.4, 0.8])
def test_bias_and_plain_error_of_given_draws(offset):
    """Factored draws off by b with noise 0.3, plain ones of noise 1: the bias is b^2, plain's squared error 1 / n."""
    rng = np.random.default_rng(1)
    truth = rng.standard_normal((300, 1, 200))
    noise = rng.standard_normal((2, 300, 12, 200))
    result = of(torch.from_numpy(truth + offset + 0.3 * noise[0]), torch.from_numpy(truth + noise[1]))
    for found, expected in (
        (result.bias, offset**2),
        (result.squared(1), offset**2 + 0.09 / 12),
        (result.squared(3), offset**2 + 0.03 / 12),
        (result.plain(1), (1 - offset**2) / 12),  # over the power of the factored map, which is off by the bias
        (result.plain(2), (1 - offset**2) / 24),
    ):
        apart = found - expected
        assert abs(float(apart.mean())) < 4 * float(apart.std()) / np.sqrt(300)
    own = (truth[:, 0] + offset) ** 2
    apart = result.power.numpy() - own.mean(1)
    assert abs(apart.mean()) < 4 * apart.std() / np.sqrt(300)


def test_the_estimated_error_counts_the_bias():
    """Seven times the spread of the groups here, which alone would be far too sure."""
    a = quartic()
    true = ((a.scores - TRUE_QUARTIC).square().mean(1) / TRUE_QUARTIC.square().mean(1)).sqrt()
    assert 0.8 < float((true / a.estimate.error).median()) < 1.25
    result = finished(a, named())
    assert float(((result.squared(1) - result.bias) / result.bias).max()) < 0.1


def test_more_samples_do_not_lower_the_bias():
    few, many = (quartic(n).estimate.error.median() for n in (48, 480))
    torch.testing.assert_close(few, many, rtol=0.1, atol=0)


def test_until_says_so_where_the_bias_is_above_the_goal():
    a = quartic(pl.Until(error=0.01, at_most=60))
    assert set(a.estimate.samples) == {60}
    assert all(words.endswith("for 0.01 no number of samples is enough") for words in a.estimate.stopped)


def test_one_group_shows_nothing():
    a = smooth(named(12), 12, noise_level=LEVEL)(pl.TorchModel(Quartic()), X_QUARTIC)
    assert a.estimate.error is None
    assert not torch.isfinite(finished(a, named(12)).relative()).any()


def test_there_is_no_standard_error_of_an_element():
    a = smooth(pl.Factored())(MODEL, X)
    assert a.standard_error is None
    assert (a.estimate.error > 0).all()
    assert torch.isfinite(finished(a, pl.Factored()).bias).all()


def test_plain_maps_come_with_the_first_two_groups_and_every_fourth():
    assert [i for i in range(14) if beside_some(i)] == [0, 1, 4, 8, 12]
    for n, expected in ((12, 2), (48, 3), (78, 5)):
        state = smooth(pl.Factored(group=6), n)(MODEL, X).estimate.state
        assert state["gaps"].tolist() == [expected] * 3


# --- groups


@pytest.mark.parametrize(
    ("n", "group", "taken"), [(4, 2, 4), (8, 2, 8), (10, 4, 12), (16, 4, 16), (48, 6, 48), (50, 6, 54), (400, 6, 402)]
)
def test_a_group_is_a_quarter_of_the_samples_in_pairs_and_six_at_the_most(n, group, taken):
    how = pl.Factored().how(n)
    assert (how.size, how.mirrored, how.cuts, how.stacked) == (group, True, 3, False)
    assert counts(n, how.size)[-1] * how.size == taken


def test_an_until_takes_groups_of_six_and_a_setting_goes_before():
    until = pl.Until(error=0.5, at_most=100)
    assert pl.Factored().how(until).size == 6
    assert pl.Factored(group=10).how(until).size == pl.Factored(group=10).how(8).size == 10


def test_samples_are_taken_in_whole_groups():
    a = smooth(pl.Factored(), 50)(MODEL, X[:1])
    assert a.samples_used == 54
    assert a.stopped == "the 54 samples asked for were taken"
    assert a.estimate.state["draws"].tolist() == [9]
    until = smooth(pl.Factored(), pl.Until(error=1e-9, at_most=50))(MODEL, X[:1])
    assert until.samples_used == 48  # at most


@pytest.mark.doors
def test_an_until_of_less_than_one_group_is_refused():
    """It would take more than it may."""
    with pytest.raises(pl.ArgumentError, match="at_most"):
        smooth(pl.Factored(), pl.Until(error=0.5, at_most=4))(MODEL, X[:1])


def test_groups_never_mix_inputs():
    """A map in company is the map alone; the inputs differ by much."""
    x = torch.cat([X[:1], -3 * X[1:2], X[2:].square()])
    together = smooth(pl.Factored(), 18)(MODEL, x)
    for row in range(3):
        alone = smooth(pl.Factored(), 18)(MODEL, x[row : row + 1])
        assert float((together.scores[row] - alone.scores[0]).abs().max()) <= 1e-5 * float(alone.scores.abs().max())
        torch.testing.assert_close(together.estimate.error[row], alone.estimate.error[0], rtol=1e-4, atol=0)


@pytest.mark.parametrize("micro_batch", [4, 5, 8, 18, 100])
def test_the_micro_batch_changes_no_map(micro_batch):
    """It holds whole groups, of one input or of several."""
    expected = smooth(pl.Factored(group=4), 20)(MODEL, X)
    found = smooth(pl.Factored(group=4), 20)(pl.TorchModel(MODEL.net, micro_batch=micro_batch), X)
    assert float((found.scores - expected.scores).abs().max()) <= 1e-5 * float(expected.scores.abs().max())
    torch.testing.assert_close(found.estimate.error, expected.estimate.error, rtol=1e-4, atol=0)
    assert torch.equal(found.estimate.state["gaps"], expected.estimate.state["gaps"])


def test_the_group_changes_the_map():
    one, other = (smooth(pl.Factored(group=g), 24)(MODEL, X).scores for g in (2, 12))
    assert not torch.allclose(one, other, rtol=1e-3)


@pytest.mark.doors
def test_a_micro_batch_of_less_than_a_group_is_named():
    model = pl.TorchModel(MODEL.net, micro_batch=5)
    with pytest.raises(pl.MemoryLimit, match="6 samples must go through Sequential together, but `micro_batch` is 5"):
        smooth(pl.Factored())(model, X)
    assert smooth(pl.Antithetic())(model, X[:1]).samples_used == 48  # whose pairs need not stay together


# --- what it is asked for


@pytest.mark.doors
@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"group": 3}, "`group` is an even number: samples come in mirrored pairs. Got 3"),
        ({"group": 1}, "group"),
        ({"group": 0}, "group"),
        ({"group": 2.0}, "group"),
        ({"group": True}, "group"),
        ({"cuts": 0}, "cuts"),
        ({"cuts": ()}, r"`cuts` is a number of cuts, or a tuple of module names. Got \(\)"),
        ({"cuts": ("layer1", 2)}, r"a tuple of module names. Got \('layer1', 2\)"),
        ({"cuts": "layer1"}, "cuts"),
        ({"cuts": ["layer1"]}, "cuts"),
        ({"cuts": None}, "cuts"),
    ],
)
def test_wrong_settings_are_refused(settings, words):
    with pytest.raises(pl.ArgumentError, match=words):
        pl.Factored(**settings)


@pytest.mark.doors
@pytest.mark.parametrize("estimator", [pl.Factored(), pl.Combined()])
def test_fewer_samples_than_two_groups_of_two_are_refused(estimator):
    with pytest.raises(pl.ArgumentError, match="4 or more"):
        smooth(estimator, 3)


@pytest.mark.doors
@pytest.mark.parametrize("base", [pl.Squared(), pl.SmoothGrad(n_samples=4)])
@pytest.mark.parametrize("estimator", [pl.Factored(), pl.Shrunk(pl.Factored()), pl.Combined()])
def test_a_base_other_than_the_gradient_is_refused(base, estimator):
    with pytest.raises(
        pl.ArgumentError, match=r"its base is SimpleGradient\(\).*take estimator=Shrunk\(\) or Mean\(\)"
    ):
        smooth(estimator, base=base)(MODEL, X)


@pytest.mark.doors
def test_a_function_has_no_gradient_to_factor():
    with pytest.raises(pl.MissingNeed):
        smooth(pl.Factored())(pl.FunctionModel(lambda x: x.reshape(len(x), -1)[:, :2]), X)


@pytest.mark.doors
def test_a_linear_network_cannot_be_cut_and_has_no_need_to_be():
    weight = uniform(2, 6, dtype=torch.float64)
    model, x = pl.TorchModel(Linear(weight)), uniform(1, 6, dtype=torch.float64)
    with pytest.raises(pl.CutError, match=r"no place to be cut.*Take estimator=Shrunk\(\) or Mean\(\)"):
        smooth(pl.Factored())(model, x, 1)
    plain = smooth(pl.Mean())(model, x, 1)
    assert float(plain.estimated_error) <= 1e-12
    torch.testing.assert_close(plain.scores, weight[1:2], rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("n", "group", "expected"),
    [
        (48, None, pl.Cost(48, 48 + 18)),
        (50, None, pl.Cost(54, 54 + 24)),
        (8, None, pl.Cost(8, 12)),
        (24, 12, pl.Cost(24, 48)),
    ],
)
@pytest.mark.parametrize("together", [True, False])
def test_the_cost_on_the_card_is_that_of_the_counted_passes(n, group, expected, together):
    """The plain maps beside some groups cost a backward pass each, and no other group's do."""
    explain = smooth(pl.Factored(group=group), n)
    size = explain.estimator.how(n).size
    model = pl.TorchModel(MODEL.net, micro_batch=None if together else size)
    assert explain.card.cost == expected
    assert explain(model, X[:1], 0).cost == expected + pl.Cost(1)  # and the clean prediction


def test_the_recipe_says_where_it_was_cut():
    a = smooth(pl.Factored())(MODEL, X)
    assert a.recipe.notes["cuts"] == ["MaxPool2DWithIndices 4x6x6, Relu 4x6x6"] * 3
    assert smooth(pl.Factored(cuts=1))(MODEL, X[:1]).recipe.notes["cuts"] == ["Relu 4x6x6"]
    assert smooth(pl.Factored(cuts=("0",)))(MODEL, X[:1]).recipe.notes["cuts"] == ["Convolution 4x12x12"]
    assert "cuts" not in smooth(pl.Antithetic())(MODEL, X[:1]).recipe.notes


def test_settings_go_into_a_recipe_and_back():
    for estimator in (pl.Factored(), pl.Factored(cuts=("a", "b.0"), group=8), pl.Antithetic()):
        assert decode(encode(estimator)) == estimator
    assert pl.Factored().words == "factored"
    assert pl.Factored() != pl.Factored(group=6)


# --- more samples, and again


def same(one: pl.Attribution, other: pl.Attribution) -> None:
    assert torch.equal(one.scores, other.scores)
    assert torch.equal(one.estimate.error, other.estimate.error)
    assert one.estimate.state.keys() == other.estimate.state.keys()
    assert all(torch.equal(one.estimate.state[name], part) for name, part in other.estimate.state.items())
    assert one.estimate.samples == other.estimate.samples
    assert one.recipe.explainer == other.recipe.explainer
    assert one.recipe.notes == other.recipe.notes


@pytest.mark.parametrize(("n", "more"), [(16, 32), (48, 6), (50, 40)])
def test_extending_equals_one_long_run(n, more):
    """With the groups that the first run had: 16 samples come in groups of 4."""
    group = pl.Factored().how(n).size
    taken = counts(n, group)[-1] * group
    longer = smooth(pl.Factored(), n)(MODEL, X).extend(MODEL, X, more)
    same(longer, smooth(pl.Factored(group=group), taken + more)(MODEL, X))


def test_extending_what_was_stored_equals_one_long_run(tmp_path):
    path = smooth(pl.Factored(), 16)(MODEL, X).save(tmp_path / "a.safetensors")
    longer = pl.Attribution.load(path).extend(MODEL, X, 20)
    same(longer, smooth(pl.Factored(group=4), 36)(MODEL, X))


def test_extending_to_an_until_equals_one_run_to_it():
    until = pl.Until(error=1e-9, at_most=60)
    longer = smooth(pl.Factored(), 12)(MODEL, X[:1]).extend(MODEL, X[:1], until)
    same(longer, smooth(pl.Factored(group=4), replace(until, at_least=12))(MODEL, X[:1]))
    same(longer.reproduce(MODEL, X[:1]), longer)


@pytest.mark.parametrize("group", [None, 6, 12])
def test_a_run_is_reproduced_to_the_bit(group):
    a = smooth(pl.Factored(group=group), 24)(MODEL, X)
    same(a.reproduce(MODEL, X), a)


def test_a_group_larger_than_the_models_micro_batch_is_reproduced_and_extended():
    """Rows of 60 x 60 pixels go 55 at once by the model's own rule, those of a group of 64 all together."""
    x = uniform(1, 3, 60, 60)
    explain = smooth(pl.Factored(group=64), 128)
    a = explain(MODEL, x)
    same(a.reproduce(MODEL, x), a)
    assert a.extend(MODEL, x, 64).samples_used == 192

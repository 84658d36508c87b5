"""Plain and factored maps combined: the weights against other solvers, the map and its error against the truth."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.optimize import lsq_linear, nnls
from tests.oracles import normal, smooth, stream_of, uniform
from torch import nn

import pellucid as pl
from pellucid.core.estimate import Estimate
from pellucid.core.estimator import Estimator, Finished, sample
from pellucid.core.moments import Moments
from pellucid.core.recipe import decode, encode
from pellucid.modalities.image.combined import _least_risk

COMBINED = pl.Combined(group=6)


def estimated(plain: np.ndarray, factored: np.ndarray) -> Estimate:
    """Of the two maps (inputs, draws, C, H, W) of the same draws, each the mean of six samples."""
    both = torch.from_numpy(np.stack([plain, factored], 2)).float()
    return sample(stream_of(both, 512, plain.shape[1] * 6), COMBINED)


def alone(maps: np.ndarray) -> Estimate:
    """The shrunk mean of one of them."""
    return sample(stream_of(torch.from_numpy(maps).float(), 512), pl.Shrunk())


def finished(plain: np.ndarray, factored: np.ndarray) -> Finished:
    both = torch.from_numpy(np.stack([plain, factored], 2))
    moments = Moments(both[:, 0], 2)
    for draw in both.unbind(1):
        moments.add(draw)
    return COMBINED.finish(moments)


def power(maps: np.ndarray) -> np.ndarray:
    return (maps**2).mean((1, 2, 3))


# --- the weights


def risks(q: np.ndarray, r: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """w'qw - 2 w'r of each row of weights."""
    return np.einsum("...i,ij,...j->...", weights, q, weights) - 2 * weights @ r


PROBLEMS = [(a @ a.T, np.random.default_rng(seed + 1000).standard_normal(2) * 2)
            for seed in range(300) for a in [normal(2, 3, seed=seed)]]  # fmt: skip


def test_the_weights_lie_between_zero_and_one_and_no_others_have_less_risk():
    """Against a grid of weights, and against scipy's least squares within bounds."""
    steps = np.linspace(0, 1, 21)
    grid = np.stack(np.meshgrid(steps, steps), -1).reshape(-1, 2)
    for q, r in PROBLEMS:
        weights = _least_risk(q, r)
        assert ((weights >= 0) & (weights <= 1)).all()
        found, scale = float(risks(q, r, weights)), np.abs(q).max() + np.abs(r).max()
        assert found <= risks(q, r, grid).min() + 1e-12 * scale
        root = np.linalg.cholesky(q)
        exact = lsq_linear(root.T, np.linalg.solve(root, r), (0, 1), tol=1e-14).x
        assert abs(found - float(risks(q, r, exact))) <= 1e-7 * scale


def test_weights_that_need_no_upper_bound_are_those_of_non_negative_least_squares():
    inside = 0
    for q, r in PROBLEMS:
        root = np.linalg.cholesky(q)
        expected = nnls(root.T, np.linalg.solve(root, r))[0]
        if (expected <= 1).all():
            inside += 1
            np.testing.assert_allclose(_least_risk(q, r), expected, rtol=0, atol=1e-7)
    assert inside > 100


@pytest.mark.parametrize(
    ("q", "r"),
    [
        (np.zeros((2, 2)), np.zeros(2)),
        (np.ones((2, 2)), np.array([0.5, 0.5])),
        (np.ones((2, 2)), np.array([2.0, 3.0])),
        (np.diag([1.0, 0.0]), np.array([0.7, 0.0])),
        (np.array([[1.0, 1.0], [1.0, 1.0 + 1e-12]]), np.array([1.0, 1.0])),
        (np.diag([1e-30, 1e30]), np.array([1e-30, 1e29])),
        (np.eye(2), np.array([-1.0, -2.0])),
    ],
)
def test_maps_that_agree_or_are_empty_do_no_harm(q, r):
    weights = _least_risk(q, r)
    assert np.isfinite(weights).all()
    assert ((weights >= 0) & (weights <= 1)).all()
    corners = np.array([[0, 0], [0, 1], [1, 0], [0, 0.5], [0.5, 0]], dtype=float)
    assert float(risks(q, r, weights)) <= risks(q, r, corners).min() + 1e-9 * np.abs(r).max()


# --- the formula


@pytest.fixture
def bands_alone(monkeypatch):
    """Sharp values are weighed like others."""
    monkeypatch.setattr("pellucid.modalities.image.combined.kept", lambda mean, noise, shrunk, draws: (shrunk, 0.0))


def by_hand(plain: np.ndarray, factored: np.ndarray) -> tuple[np.ndarray, Callable[[float], float]]:
    """Of draws (n, h, w) of one band: the map of least risk w'Qw - 2 w'r + <M, M>, and its risk with more draws."""
    draws = (plain.reshape(len(plain), -1), factored.reshape(len(plain), -1))
    n, size = draws[0].shape
    across = np.zeros((2, 2))
    for i in range(2):
        for j in range(2):
            products = [draws[i][a] @ draws[j][b] for a in range(n) for b in range(n) if a != b]
            across[i, j] = sum(products) / (n * (n - 1))
    means = np.stack([part.mean(0) for part in draws])
    second = means @ means.T
    truth = max(across[0, 0], 0.0)
    goal = np.array([truth, (across[0, 1] + across[1, 0]) / 2])
    root = np.linalg.cholesky(second)
    w = lsq_linear(root.T, np.linalg.solve(root, goal), (0, 1), tol=1e-14).x
    stays = w @ across @ w - 2 * w @ goal + truth
    falls = w @ (second - across) @ w
    return (w @ means).reshape(plain.shape[1:]), lambda times: max(stays, 0.0) / size + falls / times / size


@pytest.mark.parametrize("offset", [0.0, 0.3, 1.5])
@pytest.mark.parametrize("factor", [1.0, 0.3, 2.0])
@pytest.mark.parametrize("n", [2, 5, 8])
def test_a_band_is_weighed_by_the_products_of_independent_draws(n, factor, offset, bands_alone):
    """A picture of 8 pixels is one band; up to eight draws are groups of their own."""
    truth = smooth(1, 8, 8)
    plain = truth + normal(n, 1, 8, 8, seed=1)
    factored = factor * truth + offset * smooth(1, 8, 8, seed=5) + 0.4 * normal(n, 1, 8, 8, seed=2)
    values, risk = by_hand(plain[:, 0], factored[:, 0])
    result = finished(plain[None], factored[None])
    np.testing.assert_allclose(result.values[0, 0], values, rtol=0, atol=1e-5 * np.abs(values).max())
    for times in (1.0, 5.0):
        np.testing.assert_allclose(result.squared(times), risk(times), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(result.plain(2.0), plain.var(0, ddof=1).mean() / n / 2, rtol=1e-6)


def test_the_colours_may_be_mixed_before_or_after(bands_alone):
    turn = np.array([[1.0, 0.4, -0.2], [0.3, 0.8, 0.1], [-0.5, 0.2, 1.5]])
    plain, factored = (0.5 * smooth(3, 24, 24) + s * normal(20, 3, 24, 24, seed=i) for i, s in ((1, 2), (2, 1)))
    straight = finished(plain[None], factored[None]).values[0].numpy()
    mixed = finished(*(np.einsum("cd,ndhw->nchw", turn, part)[None] for part in (plain, factored)))
    expected = np.einsum("cd,dhw->chw", turn, straight)
    np.testing.assert_allclose(mixed.values[0], expected, rtol=0, atol=1e-4 * np.abs(expected).max())


# --- which of the two it trusts


def test_without_bias_a_quiet_factored_map_is_trusted():
    """Plain noise of 3.5, factored of 1.5: nearly as good as the factored map shrunk, far better than the plain one."""
    truth = smooth(20, 3, 32, 32)
    plain, factored = (truth[:, None] + s * normal(20, 12, 3, 32, 32, seed=i) for i, s in ((1, 3.5), (2, 1.5)))
    found = (estimated(plain, factored), alone(factored), alone(plain))
    combined, own, other = (np.median(power(estimate.values.numpy() - truth)) for estimate in found)
    assert combined < 1.3 * own
    assert combined < 0.6 * other


@pytest.mark.parametrize("factor", [0.5, 2.0])
def test_with_many_draws_and_a_strong_bias_the_plain_map_is_trusted(factor):
    """A factored map of half or twice the height, with next to no noise: its error would be a quarter of the signal,
    or all of it; that of the plain one is a hundredth or so.
    """
    truth = smooth(8, 3, 32, 32)
    plain = truth[:, None] + 3 * normal(8, 200, 3, 32, 32, seed=1)
    factored = factor * truth[:, None] + 0.5 * normal(8, 200, 3, 32, 32, seed=2)
    combined, other = (power(found.values.numpy() - truth) for found in (estimated(plain, factored), alone(plain)))
    assert np.median(combined) < 2 * np.median(other)
    assert np.median(combined) < 0.1 * (1 - factor) ** 2


def test_the_more_draws_the_less_the_biased_map_counts():
    """What the map has of the factored one's bias of 0.3, a pattern of its own."""
    truth, off = smooth(8, 1, 32, 32), smooth(8, 1, 32, 32, seed=9)
    shares = []
    for n in (8, 40, 320):
        plain = truth[:, None] + 8 * normal(8, n, 1, 32, 32, seed=1)
        factored = (truth + 0.3 * off)[:, None] + normal(8, n, 1, 32, 32, seed=2)
        error = estimated(plain, factored).values.numpy() - truth
        shares.append(float(np.median((error * off).mean((1, 2, 3)) / (0.3 * power(off)))))
    assert shares[0] > 0.7
    assert shares[0] > shares[1] > shares[2]
    assert shares[2] < 0.4


@pytest.mark.parametrize(
    ("factor", "off", "n"),
    [
        (1.0, 0.0, 8), (1.0, 0.0, 80), (1.0, 0.3, 8), (1.0, 0.3, 80), (1.0, 1.0, 80), (0.8, 0.0, 80), (0.5, 0.0, 80),
        (2.0, 0.0, 80),
    ],
)  # fmt: skip
def test_the_error_counts_the_bias_whatever_was_trusted(factor, off, n):
    """True over estimated, median of 20 runs; plain noise of 3 in each draw, factored of 1.2."""
    truth = smooth(20, 3, 32, 32)
    plain = truth[:, None] + 3 * normal(20, n, 3, 32, 32, seed=1)
    pattern = off * smooth(20, 3, 32, 32, seed=9)
    factored = (factor * truth + pattern)[:, None] + 1.2 * normal(20, n, 3, 32, 32, seed=2)
    found = estimated(plain, factored)
    true = np.sqrt(power(found.values.numpy() - truth) / power(truth))
    assert 0.8 < np.median(true / found.error.numpy()) < 1.25


def test_what_more_draws_leave_is_called_its_bias():
    """The part of the squared error that stays."""
    truth = smooth(4, 3, 16, 16)
    plain = truth[:, None] + 3 * normal(4, 12, 3, 16, 16, seed=1)
    factored = 0.6 * truth[:, None] + normal(4, 12, 3, 16, 16, seed=2)
    result = finished(plain, factored)
    np.testing.assert_allclose(result.squared(1e12), result.bias, rtol=1e-6, atol=1e-12)
    assert float(result.bias.max()) > 0


# --- sharp values, noise alone, and none


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("n", [8, 24])
def test_one_sharp_pixel_of_ten_standard_errors_keeps_its_height(n, seed):
    """Of what the factored map has there at least 80 %."""
    plain, factored = 2 * normal(1, n, 3, 31, 33, seed=seed + 50), normal(1, n, 3, 31, 33, seed=seed)
    for maps in (plain, factored):
        maps[:, :, 1, 10, 20] += 10 / np.sqrt(n)
    values = estimated(plain, factored).values[0]
    assert float(values[1, 10, 20]) >= 0.8 * factored.mean(1)[0, 1, 10, 20]
    rest = values.clone()
    rest[1, 10, 20] = 0
    assert float(rest.square().mean()) < 0.1 * (factored.mean(1) ** 2).mean()


@pytest.mark.parametrize("n", [8, 40])
def test_of_noise_alone_nothing_is_left_and_the_error_is_infinite(n):
    """No signal yet, in 18 of 20 runs at the least; the map's power is under a twentieth of the plain mean's in all."""
    plain, factored = 3 * normal(20, n, 3, 32, 32), normal(20, n, 3, 32, 32, seed=1)
    found = estimated(plain, factored)
    assert int(torch.isinf(found.error).sum()) >= 18
    assert (power(found.values.numpy()) / power(plain.mean(1))).max() < 0.05


def test_noise_that_was_weighed_to_nothing_is_not_called_certain():
    found = estimated(3 * normal(100, 16, 1, 8, 8), normal(100, 16, 1, 8, 8, seed=1))
    empty = (found.values == 0).flatten(1).all(1)
    assert int(empty.sum()) >= 5
    assert torch.isinf(found.error[empty]).all()


def test_without_noise_the_map_is_what_both_agree_on_and_has_no_error():
    map_ = normal(2, 1, 3, 20, 20).astype(np.float32)
    found = estimated(np.repeat(map_, 6, 1), np.repeat(map_, 6, 1))
    assert np.array_equal(found.values, map_[:, 0])
    assert found.error.tolist() == [0.0, 0.0]


def test_a_factored_map_without_noise_of_its_own_is_not_taken_for_exact():
    """All its draws agree, on something that is not the mean of the plain ones."""
    truth = smooth(1, 3, 16, 16)
    plain = truth[:, None] + normal(1, 40, 3, 16, 16, seed=1)
    found = estimated(plain, np.repeat(2 * truth[:, None], 40, 1))
    assert float(found.error) > 0.02
    assert power(found.values.numpy() - truth)[0] < 0.2


@pytest.mark.parametrize("size", [(1, 1), (2, 9), (5, 3), (14, 15)])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_the_smallest_pictures_are_combined_too(size, channels):
    plain, factored = normal(1, 10, channels, *size), normal(1, 10, channels, *size, seed=1)
    found = estimated(plain, factored)
    assert found.values.shape == (1, channels, *size)
    assert torch.isfinite(found.values).all()


def test_a_single_draw_shows_nothing():
    found = estimated(normal(1, 1, 3, 8, 8), normal(1, 1, 3, 8, 8, seed=1))
    assert (found.error, found.standard_error) == (None, None)
    result = finished(normal(1, 1, 3, 8, 8), normal(1, 1, 3, 8, 8, seed=1))
    assert torch.isinf(result.relative()).all()


# --- in a call


def net() -> nn.Module:
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2),
        )  # fmt: skip


MODEL = pl.TorchModel(net())
X = uniform(3, 3, 20, 20)


def smoothed(estimator: Estimator, n: int = 16) -> pl.SmoothGrad:
    return pl.SmoothGrad(n_samples=n, estimator=estimator)


def test_its_two_maps_are_those_of_the_plain_and_of_the_factored_mean():
    both = smoothed(pl.Combined(group=4), 24)(MODEL, X)
    for place, other in enumerate((pl.Antithetic(), pl.Factored(group=4))):
        expected = smoothed(other, 24)(MODEL, X).scores
        found = both.estimate.state["mean"][:, place].float()
        assert float((found - expected).abs().max()) <= 1e-5 * float(expected.abs().max())
    assert both.standard_error is None


def test_its_batches_are_those_of_the_plain_map_which_has_no_bias():
    both, plain = (smoothed(e, 24)(MODEL, X).estimate for e in (pl.Combined(group=2), pl.Antithetic()))
    assert both.batch_means.shape == (3, 16, 3, 20, 20)
    scale = float(plain.batch_means.abs().max())
    assert float((both.batch_means - plain.batch_means).abs().max()) <= 1e-5 * scale


def test_a_map_in_company_is_the_map_alone():
    x = torch.cat([X[:1], -3 * X[1:2], X[2:].square()])
    together = smoothed(pl.Combined())(MODEL, x)
    for row in range(3):
        single = smoothed(pl.Combined())(MODEL, x[row : row + 1])
        assert float((together.scores[row] - single.scores[0]).abs().max()) <= 1e-4 * float(single.scores.abs().max())


@pytest.mark.parametrize(("n", "cost"), [(48, pl.Cost(48, 96)), (50, pl.Cost(54, 108))])
def test_the_cost_on_the_card_is_two_backward_passes_for_each_sample(n, cost):
    explain = smoothed(pl.Combined(), n)
    assert explain.card.cost == cost
    assert explain(MODEL, X[:1], 0).cost == cost + pl.Cost(1)  # and the clean prediction


def test_its_groups_and_cuts_are_those_of_factored():
    for settings in ({}, {"group": 8}, {"cuts": 1}, {"cuts": ("1", "4")}):
        for n in (8, 48, pl.Until(error=0.5, at_most=100)):
            one, other = (estimator(**settings).how(n) for estimator in (pl.Combined, pl.Factored))
            assert (one.size, one.mirrored, one.cuts) == (other.size, other.mirrored, other.cuts)
            assert one.stacked
    a = smoothed(pl.Combined(cuts=("1",)))(MODEL, X[:1])
    assert a.recipe.notes["cuts"] == ["Relu 4x20x20"]


def test_extending_equals_one_long_run_and_a_run_is_reproduced(tmp_path):
    first = smoothed(pl.Combined())(MODEL, X)
    stored = pl.Attribution.load(first.save(tmp_path / "a.safetensors"))
    whole = smoothed(pl.Combined(group=4), 40)(MODEL, X)
    for longer in (first.extend(MODEL, X, 24), stored.extend(MODEL, X, 24)):
        assert torch.equal(longer.scores, whole.scores)
        assert torch.equal(longer.estimate.error, whole.estimate.error)
        assert longer.recipe.explainer == whole.recipe.explainer
    again = stored.reproduce(MODEL, X)
    assert torch.equal(again.scores, first.scores)
    assert torch.equal(again.estimate.error, first.estimate.error)


def test_settings_go_into_a_recipe_and_back():
    for estimator in (pl.Combined(), pl.Combined(cuts=("a", "b.0"), group=8)):
        assert decode(encode(estimator)) == estimator
    assert pl.Combined().words == "plain and factored combined"


@pytest.mark.doors
@pytest.mark.parametrize("settings", [{"group": 3}, {"group": 1}, {"cuts": ()}, {"cuts": "layer1"}, {"cuts": 0}])
def test_what_factored_refuses_is_refused(settings):
    with pytest.raises(pl.ArgumentError):
        pl.Combined(**settings)


@pytest.mark.doors
def test_what_is_no_image_is_refused():
    with pytest.raises(pl.ArgumentError, match=r"Combined is for images \(B, C, H, W\)"):
        smoothed(pl.Combined())(pl.TorchModel(nn.Linear(4, 2)), uniform(1, 4))

import numpy as np
import pytest
from tests.explainers.masks import AllMasks, times

from pellucid.core.random import Key
from pellucid.explainers._odd_process import fit_weights
from pellucid.explainers._rise import Grid, Masks, drawn
from pellucid.explainers._rise_process import rise_fit

GRID = Grid.of((30, 42), 5)


def smooth(grid: Grid, *, seed: int = 0, width: float = 4.0) -> np.ndarray:
    """A picture of one blob beside a weaker, negative one."""
    at = np.stack(np.meshgrid(*map(np.arange, grid.sides), indexing="ij"), -1)
    first, second = np.random.default_rng(seed).uniform(0.2, 0.8, (2, len(grid.sides))) * grid.sides
    return np.exp(-((at - first) ** 2).sum(-1) / (2 * width**2)) - 0.5 * np.exp(
        -((at - second) ** 2).sum(-1) / (2 * width**2)
    )


def linear_map(coefficients: np.ndarray, grid: Grid) -> np.ndarray:
    """E[f (m - p)] / p of f = sum_u c_u m_u with p = 1/2: half the coefficients, smoothed by mean A A'."""
    for each in grid.enlarged:
        coefficients = np.tensordot(coefficients, np.mean([matrix @ matrix.T for matrix in each], 0), axes=(0, 1))
    return coefficients / 2


def pairs(count: int, grid: Grid = GRID, seed: int = 0) -> Masks:
    return drawn(Key.named("pairs").stream(seed), range(count), grid, 0.5)


def halves_of(coefficients: np.ndarray, masks: Masks) -> np.ndarray:
    """(f(m) - f(1 - m)) / 2 = sum_u c_u (m_u - 1/2)."""
    return ((masks.values() - 0.5) * coefficients).reshape(len(masks), -1).sum(1)


def share(found: np.ndarray, true: np.ndarray) -> float:
    return float(((found - true) ** 2).sum() / (true**2).sum())


@pytest.mark.parametrize("grid", [GRID, Grid.of((50,), 6), Grid.of((28, 28), 7)], ids=str)
def test_a_smooth_linear_model_is_nearly_exact(grid):
    c = smooth(grid)
    masks = pairs(150, grid)
    fit = rise_fit(halves_of(c, masks), masks)
    left = share(fit.values, linear_map(c, grid))
    assert left < 2e-3
    assert fit.notes["r2"] > 0.98
    plain = times(halves_of(c, masks), masks.values() - 0.5).mean(0) / 0.5
    assert share(plain, linear_map(c, grid)) > 10 * left, "what averaging the same pairs leaves"


def test_it_is_linear_in_the_scores_and_keeps_their_unit():
    c, masks = smooth(GRID), pairs(60)
    halves = halves_of(c, masks) + 0.3 * np.random.default_rng(0).normal(size=60)
    one, other = rise_fit(halves, masks), rise_fit(-1000 * halves, masks)
    np.testing.assert_allclose(other.values, -1000 * one.values, rtol=1e-6, atol=1e-6 * abs(other.values).max())
    np.testing.assert_allclose(other.variance, 1e6 * one.variance, rtol=1e-6)


@pytest.mark.parametrize("n", [12, 40], ids=["fewer pairs than nodes", "more pairs than nodes"])
def test_it_is_the_posterior_of_the_expectation_over_all_masks(n):
    """On a grid so small that E[h (2 m - 1)] of the posterior is a sum over every mask that there is."""
    sides, cells = (4, 6), 2
    every, masks = AllMasks.of(sides, cells), pairs(n, Grid.of(sides, cells))

    def nodes(values: np.ndarray) -> np.ndarray:
        """Of 4 rows each its own node, of 6 columns nodes of one and a half."""
        wide = np.repeat(values, 2, 2).reshape(len(values), 4, 4, 3).mean(3)
        return (2 * wide - 1).reshape(len(values), -1)

    def smoother(length: float) -> np.ndarray:
        weights = np.exp(-((np.arange(4)[:, None] - np.arange(4)) ** 2) / (2 * length**2))
        return weights / weights.sum(1, keepdims=True)

    each = [np.kron(smoother(length).T @ smoother(length), smoother(length).T @ smoother(length))
            for length in (0.7, 1.2, 2.0, 3.2)]  # fmt: skip
    halves = halves_of(np.random.default_rng(2).normal(size=sides), masks) + np.random.default_rng(3).normal(size=n)
    x, fit = nodes(masks.values()), rise_fit(halves, masks)
    process = fit_weights([x @ prior @ x.T for prior in each], halves)
    prior = np.tensordot(process.weights, each, axes=1)
    away = 2 * every.values - 1
    link = np.tensordot(every.chances(0.5)[:, None, None] * away, nodes(every.values), axes=(0, 0)).reshape(24, 16)
    gain = link @ prior @ x.T
    np.testing.assert_allclose(fit.values.ravel(), gain @ process.inverse @ halves, rtol=1e-6, atol=1e-9)
    assert fit.notes["r2"] == pytest.approx(process.r2, rel=1e-6)
    variance = np.diag(link @ prior @ link.T - gain @ process.inverse @ gain.T)
    assert fit.variance is not None
    np.testing.assert_allclose(fit.variance.ravel(), variance, rtol=1e-6)


def test_the_predicted_error_is_the_true_one():
    """Of a smooth model under as much of what no linear one has: squared errors over 40 draws of masks."""
    c, grid = smooth(GRID), GRID
    true = linear_map(c, grid)
    found, said, outside = [], [], []
    for seed in range(40):
        masks = pairs(80, seed=seed)
        rng = np.random.default_rng(seed)
        linear = halves_of(c, masks)
        halves = linear + linear.std() * rng.normal(size=len(linear))
        fit = rise_fit(halves, masks)
        assert fit.variance is not None
        found.append(((fit.values - true) ** 2).mean())
        said.append(fit.variance.mean())
        outside.append(((fit.values - true) ** 2 > 1.645**2 * fit.variance).mean())
    assert 0.7 <= np.mean(found) / np.mean(said) <= 1.4
    assert 0.05 <= np.mean(outside) <= 0.15


def test_scores_without_an_odd_part_give_a_blank_map_that_is_certain():
    fit = rise_fit(np.zeros(20), pairs(20))
    assert not fit.values.any()
    assert not fit.variance.any()
    assert not fit.findings


def test_no_error_is_shown_where_the_process_predicts_nothing():
    fit = rise_fit(np.random.default_rng(0).normal(size=60), pairs(60))
    assert fit.variance is None
    assert np.isinf(fit.relative())
    assert fit.values.any()
    assert "under 15%: no error is shown" in fit.findings[0]
    assert fit.notes["r2"] < 0.15

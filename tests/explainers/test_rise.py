import math

import numpy as np
import pytest
import torch
from tests.explainers.masks import AllMasks, covered, enlarged, shown, times
from tests.oracles import uniform

import pellucid as pl
from pellucid.core.random import Key
from pellucid.core.random import uniform as stream_values
from pellucid.explainers._queried import Place
from pellucid.explainers._rise import Grid, Masks, drawn, weighted

SIDES, CELLS = (4, 6), 2
EVERY = AllMasks.of(SIDES, CELLS)
COEFFICIENTS = np.random.default_rng(3).normal(size=SIDES)
X = torch.from_numpy(1 + np.arange(24.0).reshape(SIDES) / 10)[None, None]
ABSENT = -0.5
BASE = pl.Constant(ABSENT)


def linear(rows: np.ndarray) -> np.ndarray:
    return 2 + (rows[:, 0] * COEFFICIENTS).sum((1, 2))


def curved(rows: np.ndarray) -> np.ndarray:
    return np.tanh(linear(rows) / 3) + rows[:, 0, 1, 2] * rows[:, 0, 2, 3]


def masked(masks: np.ndarray, x: np.ndarray | None = None) -> np.ndarray:
    """Inputs (N, 1, H, W) of which the masks keep a part."""
    x = X[0, 0].numpy() if x is None else x
    return (masks * x + (1 - masks) * ABSENT)[:, None]


def model(f=linear, **settings) -> pl.FunctionModel:
    return pl.FunctionModel(f, output="regression", **settings)


def explain(**settings) -> pl.RISE:
    return pl.RISE(**{"baseline": BASE, "cells": CELLS, "budget": 60} | settings)


def own_masks(a: pl.Attribution, row: int = 0, *, seed: int = 0, p: float = 0.5, x: torch.Tensor = X) -> np.ndarray:
    """The masks of a call, made anew by torch: cells bits and two shifts are what is drawn."""
    found = []
    for i in range(int(a.estimate.state["draws"][row])):
        numbers = stream_values(Key.of(x[row]).stream(seed), i, CELLS**2 + 2)
        shift = tuple(int(u * math.ceil(side / CELLS)) for u, side in zip(numbers[CELLS**2 :], SIDES, strict=True))
        found.append(enlarged((numbers[: CELLS**2] < p).reshape(CELLS, CELLS), SIDES, shift))
    return np.stack(found)


# ------------------------------------------------------------------ masks
@pytest.mark.parametrize(("sides", "cells"), [((7, 10), 3), ((5,), 2), ((4, 3, 5), 2), ((224, 224), 7)])
def test_a_mask_is_the_enlarged_grid_cut_at_its_shift(sides, cells):
    rng = np.random.default_rng(0)
    bits = rng.random((5, *(cells,) * len(sides))) < 0.5
    shifts = np.stack([rng.integers(0, math.ceil(side / cells), 5) for side in sides], 1)
    found = Masks(Grid.of(sides, cells), 0.5, bits, shifts).values()
    for own, grid, shift in zip(found, bits, shifts, strict=True):
        np.testing.assert_allclose(own, enlarged(grid, sides, tuple(shift)), atol=1e-12)


@pytest.mark.parametrize("p", [0.5, 0.2])
def test_the_mean_of_masks_is_p_at_every_place_edges_included(p):
    count = 4000
    found = drawn(Key.named("a"), range(count), Grid.of((9, 12), 3), p).values()
    assert (abs(found.mean(0) - p) <= 5 * found.std(0) / count**0.5).all()
    assert found.std(0).min() > 0.2 * (p * (1 - p)) ** 0.5, "so that each place is sometimes kept and sometimes not"


def test_every_shift_and_every_grid_is_as_likely_as_its_bits():
    p, count = 0.3, 20000
    masks = drawn(Key.named("a"), range(count), Grid.of(SIDES, CELLS), p)
    codes = np.concatenate([masks.bits.reshape(count, -1), masks.shifts], 1)
    every = np.concatenate([EVERY.bits.reshape(len(EVERY.bits), -1), EVERY.shifts], 1)
    seen = (codes[:, None] == every).all(2).sum(0) / count
    chances = EVERY.chances(p)
    assert seen.sum() == 1
    assert (abs(seen - chances) <= 5 * np.sqrt(chances / count)).all()


def test_masks_of_the_complements_are_one_less():
    masks = drawn(Key.named("a"), range(10), Grid.of((9, 12), 3), 0.5)
    other = Masks(masks.grid, 0.5, ~masks.bits, masks.shifts)
    np.testing.assert_allclose(other.values(), 1 - masks.values(), atol=1e-15)


def test_no_axis_has_more_cells_than_places():
    masks = drawn(Key.named("a"), range(40), Grid.of((1, 3), 7), 0.5)
    assert masks.bits.shape == (40, 1, 3)
    assert masks.values().shape == (40, 1, 3)


def test_a_mask_does_not_depend_on_which_others_are_made():
    grid, stream = Grid.of((9, 12), 3), Key.named("a")
    every = drawn(stream, range(10), grid, 0.5).values()
    assert np.array_equal(drawn(stream, [7, 2], grid, 0.5).values(), every[[7, 2]])
    assert not np.array_equal(drawn(stream.stream(1), range(10), grid, 0.5).values(), every)


def test_sums_over_masks_are_the_same_for_any_number_at_once(monkeypatch):
    masks, weights = (
        drawn(Key.named("a"), range(50), Grid.of((9, 12), 3), 0.3),
        np.random.default_rng(0).random((50, 2)),
    )
    away = masks.values() - 0.3
    expected = np.tensordot(weights.T, away, axes=1), np.tensordot(weights[:, 0] ** 2, away**2, axes=1)
    for chunk in (2**22, 7 * 9 * 12, 1):
        monkeypatch.setattr("pellucid.explainers._rise._CHUNK", chunk)
        for found, wanted in zip(weighted(masks, weights), expected, strict=True):
            np.testing.assert_allclose(found, wanted, rtol=1e-12)


# ------------------------------------------------------------------ RISE
@pytest.mark.parametrize("p", [0.5, 0.3])
@pytest.mark.parametrize("f", [linear, curved])
def test_it_is_the_expectation_over_all_masks(f, p):
    """(1 / p) E[f m], a finite sum, with the standard error that the same sum gives."""
    a = explain(budget=6001, p=p)(model(f), X)
    numbers = times(f(masked(EVERY.values)), EVERY.values) / p
    true_error = np.sqrt(EVERY.variance(numbers, p) / 6000)
    assert (abs(a.scores[0, 0].numpy() - EVERY.mean(numbers, p)) <= 5 * true_error).all()
    np.testing.assert_allclose(a.standard_error[0, 0].numpy(), true_error, rtol=0.1)


def test_a_linear_model_has_the_closed_form():
    """E[m_u m_v] = p^2 + p (1 - p) K_y K_x, with K of an axis the mean over shifts of A A'."""
    p = 0.3
    scores = linear(masked(EVERY.values))
    away, grid = COEFFICIENTS * (X[0, 0].numpy() - ABSENT), Grid.of(SIDES, CELLS)
    own = [np.mean([matrix @ matrix.T for matrix in each], 0) for each in grid.enlarged]
    constant = linear(masked(np.zeros((1, *SIDES))))[0] + p * away.sum()
    closed = constant + (1 - p) * own[0] @ away @ own[1].T
    np.testing.assert_allclose(EVERY.mean(times(scores, EVERY.values), p) / p, closed, atol=1e-12)


def test_it_is_the_mean_of_its_own_masks_times_their_scores():
    a = explain(p=0.3, seed=5)(model(curved), X)
    masks = own_masks(a, p=0.3, seed=5)
    products = times(curved(masked(masks)), masks) / 0.3
    assert len(masks) == 60 - 2, "less the clean prediction, and its repetition by the diagnosis"
    np.testing.assert_allclose(a.scores[0, 0].numpy(), products.mean(0), rtol=1e-12)
    expected = products.std(0, ddof=1) / len(masks) ** 0.5
    np.testing.assert_allclose(a.standard_error[0, 0].numpy(), expected, rtol=1e-9)


def test_intervals_cover():
    """On the mean over places; each place may be two standard errors of 1000 seeds outside of the band."""
    p, n, chance = 0.5, 32, (0.95 * 0.05 / 1000) ** 0.5
    true = EVERY.mean(times(curved(masked(EVERY.values)), EVERY.values), p) / p
    estimator = explain().question(place_of_x(), n).estimator
    each = (shown(estimator, SIDES, lambda kept: curved(masked(kept)), seed, p, n)(n) for seed in range(1000))
    found = np.mean([covered(fit, true, n) for fit in each], 0)
    assert 0.93 <= found.mean() <= 0.97
    assert 0.93 - 2 * chance <= found.min() <= found.max() <= 0.97 + 2 * chance


def place_of_x() -> Place:
    return Place(X, BASE.values(X), torch.zeros(SIDES, dtype=torch.int64), Key.named("a"))


def test_a_score_that_never_changes_is_no_signal_however_large():
    a = explain(budget=400)(model(lambda rows: np.full(len(rows), 100.0)), X)
    assert float(a.scores.min()) > 50
    assert math.isinf(float(a.estimate.error[0]))


def test_its_relative_error_is_that_of_what_stands_out():
    """The map less the mean score, and the error of that."""
    a = explain(budget=402)(model(), X)
    masks = own_masks(a)
    products = times(linear(masked(masks)), masks - 0.5) / 0.5
    noise = (products.var(0, ddof=1) / len(masks)).mean()
    power = (products.mean(0) ** 2).mean() - noise
    assert float(a.estimate.error[0]) == pytest.approx(math.sqrt(noise / power), rel=1e-9)


def test_a_class_is_scored_by_its_probability():
    def logits(rows: np.ndarray) -> np.ndarray:
        return np.stack([linear(rows), curved(rows), 0 * linear(rows)], 1)

    def softmax(rows: np.ndarray) -> np.ndarray:
        return torch.softmax(torch.from_numpy(logits(rows)), 1).numpy()

    a = explain()(pl.FunctionModel(logits, output="logits"), X, 1)
    masks = own_masks(a)
    expected = times(softmax(masked(masks))[:, 1], masks).mean(0) / 0.5
    np.testing.assert_allclose(a.scores[0, 0].numpy(), expected, rtol=1e-12)
    b = explain()(pl.FunctionModel(softmax, output="probabilities"), X, 1)
    np.testing.assert_allclose(b.scores.numpy(), a.scores.numpy(), rtol=1e-12)
    assert a.recipe.notes["score"] == b.recipe.notes["score"] == ["Probability"]


def test_other_targets_are_scored_as_they_are():
    def logits(rows: np.ndarray) -> np.ndarray:
        return np.stack([linear(rows), curved(rows)], 1)

    a = explain()(pl.FunctionModel(logits, output="logits"), X, pl.Margin(0, 1))
    masks = own_masks(a)
    expected = times(linear(masked(masks)) - curved(masked(masks)), masks).mean(0) / 0.5
    np.testing.assert_allclose(a.scores[0, 0].numpy(), expected, rtol=1e-12)
    assert a.recipe.notes["score"] == ["Margin"]
    assert explain()(model(), X).recipe.notes["score"] == ["ClassScore"]


def test_over_a_background_each_score_is_the_mean():
    rows = uniform(2, 1, *SIDES, dtype=torch.float64)
    a = explain(baseline=pl.Background.of(rows), budget=62)(model(curved), X)
    masks = own_masks(a)
    assert len(masks) == 30
    each = [curved((masks * X[0, 0].numpy() + (1 - masks) * row[0].numpy())[:, None]) for row in rows]
    expected = times(np.mean(each, 0), masks).mean(0) / 0.5
    np.testing.assert_allclose(a.scores[0, 0].numpy(), expected, rtol=1e-12)


def test_channels_are_kept_together():
    x = torch.cat([X, 2 * X], 1)
    a = explain()(model(lambda rows: rows[:, 1].sum((1, 2))), x)
    masks = own_masks(a, x=x)
    expected = times((masks * 2 * X[0, 0].numpy() + (1 - masks) * ABSENT).sum((1, 2)), masks).mean(0) / 0.5
    assert tuple(a.scores.shape) == (1, 1, *SIDES)
    np.testing.assert_allclose(a.scores[0, 0].numpy(), expected, rtol=1e-12)


def test_what_is_kept_and_what_is_absent_are_so_to_the_last_digit():
    seen = []

    def keep(rows: np.ndarray) -> np.ndarray:
        seen.append(rows)
        return rows.sum((1, 2, 3))

    x = uniform(1, 1, *SIDES, seed=3)
    explain(budget=200, baseline=pl.Constant(0.1))(model(keep), x)
    rows, whole = np.concatenate(seen), x[0].numpy()
    assert (rows == whole).all((1, 2, 3)).sum() > 2, "the clean one twice, and where all bits are set"
    assert (rows == np.float32(0.1)).all((1, 2, 3)).any()


def test_the_budget_is_the_number_of_model_calls():
    calls = []

    def counting(rows: np.ndarray) -> np.ndarray:
        calls.append(len(rows))
        return rows.sum((1, 2, 3))

    x = uniform(1, 1, 28, 28)
    a = pl.RISE(budget=101)(model(counting), x)
    assert sum(calls) == 101 == a.samples_used
    assert a.stopped == "the budget of 101 model calls was spent"


def test_masks_that_come_again_are_not_asked_again():
    calls = []

    def counting(rows: np.ndarray) -> np.ndarray:
        calls.append(len(rows))
        return rows.sum((1, 2, 3))

    x = uniform(1, 1, 2, 2)
    explain(budget=500)(model(counting), x)
    assert sum(calls) <= 16 + 2


def test_signals_have_a_score_for_each_moment():
    x = uniform(2, 3, 11, dtype=torch.float64)
    a = explain(budget=3001)(model(lambda rows: rows[:, :, 4:6].sum((1, 2))), x)
    assert tuple(a.scores.shape) == (2, 1, 11)
    every = AllMasks.of((11,), CELLS)
    for row, own in enumerate(x.numpy()):
        scores = (every.values[:, None] * own + (1 - every.values[:, None]) * ABSENT)[:, :, 4:6].sum((1, 2))
        numbers = times(scores, every.values) / 0.5
        off = abs(a.scores[row, 0].numpy() - every.mean(numbers, 0.5))
        assert (off <= 5 * np.sqrt(every.variance(numbers, 0.5) / 3000)).all()


def test_masks_without_a_score_are_left_out():
    def gappy(rows: np.ndarray) -> np.ndarray:
        scores, most = curved(rows), np.quantile(curved(masked(EVERY.values)), 0.8)
        return np.where((scores > most) & (scores < curved(X.numpy())), np.nan, scores)  # the input itself has one

    a = explain()(model(gappy), X)
    masks = own_masks(a)
    scores = gappy(masked(masks))
    known = np.isfinite(scores)
    assert 0 < known.sum() < len(masks)
    expected = times(scores[known], masks[known]).mean(0) / 0.5
    np.testing.assert_allclose(a.scores[0, 0].numpy(), expected, rtol=1e-12)
    assert "had no score" in str(a.findings[-1])


@pytest.mark.doors
@pytest.mark.parametrize("x", [torch.ones(2, 5), {"a": torch.ones(1, 3), "b": torch.ones(1, 1, 4, 4)}])
def test_tables_and_several_inputs_are_refused(x):
    with pytest.raises(pl.ArgumentError, match=r"RISE is of pictures .* or signals .* take KernelSHAP"):
        pl.RISE()(model(), x)


@pytest.mark.doors
@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"p": 0.0}, "`p` is the share that masks keep"),
        ({"p": 1}, "between 0 and 1"),
        ({"p": True}, "Got True"),
        ({"p": "half"}, "Got 'half'"),
        ({"cells": 1}, "`cells` is a whole number, 2 or more"),
        ({"cells": (7, 7)}, "`cells` is a whole number"),
        ({"budget": 0}, "`budget` is a whole number of model calls"),
    ],
)
def test_settings_out_of_range_are_refused(settings, said):
    with pytest.raises(pl.ArgumentError, match=said):
        pl.RISE(**settings)


def test_too_small_a_budget_is_refused():
    with pytest.raises(pl.ArgumentError, match=r"`budget` is 4 model calls or more, for RISE"):
        explain(budget=3)(model(), X)

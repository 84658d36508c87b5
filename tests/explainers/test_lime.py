import math
from collections.abc import Callable
from functools import cache
from itertools import product

import numpy as np
import pytest
import torch
from scipy.stats import t as student
from tests.oracles import uniform

import pellucid as pl
from pellucid.core import random
from pellucid.core.prediction import OutputKind
from pellucid.core.queries import Answers, Run
from pellucid.core.random import Key
from pellucid.core.target import Targets
from pellucid.explainers._queried import Place
from pellucid.explainers.lime import kernel, surrogate

Game = Callable[[np.ndarray], np.ndarray]

SEEDS = range(1000)
DOUBLE = 1e-9  # of values near one, after sums of hundreds and one inversion


def place(players: int, seed: int = 0) -> Place:
    one = torch.ones(1, players, dtype=torch.float64)
    return Place(one, torch.zeros_like(one), torch.arange(players), Key.named("lime").stream(seed))


def curved(masks: np.ndarray) -> np.ndarray:
    """A game of six with pairs and a bend: no sum over its players."""
    z = np.asarray(masks, dtype=np.float64)
    return z @ [1.0, -0.5, 0.3, 0.0, 2.0, 0.7] + 1.5 * z[:, 0] * z[:, 1] - z[:, 2] * z[:, 3] + np.sin(z.sum(1))


def solved(masks: np.ndarray, weights: np.ndarray, scores: np.ndarray, penalty: float) -> tuple[np.ndarray, float]:
    """The coefficients and the constant, as least squares with a row for each mask and one for each penalty."""
    n, s = masks.shape
    rows = np.sqrt(weights)[:, None] * np.column_stack([np.ones(n), masks])
    added = np.sqrt(penalty) * np.column_stack([np.zeros(s), np.eye(s)])
    goal = np.concatenate([np.sqrt(weights) * scores, np.zeros(s)])
    found = np.linalg.lstsq(np.concatenate([rows, added]), goal, rcond=None)[0]
    return found[1:], found[0]


def aim(game: Game, players: int, n: int, penalty: float) -> np.ndarray:
    """What n masks aim at: the whole input, and n - 1 times the mean over all masks."""
    masks = np.array([[True] * players, *product([False, True], repeat=players)])
    weights = kernel(masks, 0.25) * np.r_[1, np.full(2**players, (n - 1) / 2**players)]
    return solved(masks, weights, game(masks), penalty)[0]


def of(x: torch.Tensor, absent: torch.Tensor | None = None) -> Place:
    """A table's row as the method sees it."""
    away = torch.zeros_like(x) if absent is None else absent
    return Place(x, away, torch.arange(x.shape[1]), Key.of(x[0]).stream(0))


def asked(method: pl.LIME, game: Game, where: Place, n: int) -> tuple[np.ndarray, np.ndarray]:
    """The masks of the first n queries and their scores."""
    masks = method.question(where, n).masks(range(n))
    return masks, game(masks)


@pytest.fixture(scope="module")
def thousand() -> list[tuple[np.ndarray, np.ndarray]]:
    """A hundred masks and scores of each seed."""
    return [asked(pl.LIME(), curved, place(6, seed), 100) for seed in SEEDS]


# What is fitted


def test_the_kernel_falls_with_the_cosine_distance_from_the_whole():
    """Of four segments one is present: 1 - sqrt(1/4) = 1/2, and exp(-(1/2)^2 / (1/4)^2) = exp(-4)."""
    masks = np.array([[1, 1, 1, 1], [1, 0, 0, 0], [0, 0, 0, 0]], dtype=bool)
    assert np.allclose(kernel(masks, 0.25), np.exp([0, -4, -16]), rtol=1e-12)


def test_a_game_that_is_a_sum_is_its_own_surrogate_without_a_penalty():
    x = torch.tensor([[1.0, 3.0, 2.0, -1.0]], dtype=torch.float64)
    model = pl.FunctionModel(lambda rows: 5 + rows @ [1.0, 2.0, -1.0, 4.0], output="regression")
    a = pl.LIME(baseline=pl.Zeros(), penalty=0, budget=60)(model, x, 0)
    assert torch.allclose(a.scores, torch.tensor([[1.0, 6, -2, -4]], dtype=torch.float64), atol=DOUBLE)
    assert float(a.standard_error.max()) < DOUBLE
    assert a.recipe.notes["r2"] == pytest.approx([1.0])
    assert not a.findings


@pytest.mark.parametrize("penalty", [0.0, 1.0, 20.0])
def test_the_coefficients_are_least_squares_with_a_row_for_each_penalty(penalty):
    masks, scores = asked(pl.LIME(), curved, place(6), 80)
    found = surrogate(masks, scores, 0.25, penalty, whole=True)
    expected, _ = solved(masks, kernel(masks, 0.25), scores, penalty)
    assert np.allclose(found.values, expected, atol=DOUBLE)


def test_the_first_mask_is_the_whole_input_and_half_of_the_others_is_present():
    masks = pl.LIME().question(place(50), 401).masks(range(401))
    assert masks[0].all()
    assert abs(masks[1:].mean() - 0.5) < 4 * 0.5 / math.sqrt(400 * 50)
    assert np.abs(masks[1:].mean(0) - 0.5).max() < 5 * 0.5 / math.sqrt(400)
    assert len(np.unique(masks, axis=0)) == 401


def test_the_method_passes_its_width_and_its_penalty_on():
    rows = []

    def f(given: np.ndarray) -> np.ndarray:
        rows.append(given)
        return curved(given)

    x = torch.ones(1, 6, dtype=torch.float64)
    a = pl.LIME(baseline=pl.Zeros(), width=0.4, penalty=3.0, budget=200)(pl.FunctionModel(f, output="regression"), x, 0)
    masks = asked(pl.LIME(), curved, of(x), 198)[0]
    expected, _ = solved(masks, kernel(masks, 0.4), curved(masks), 3.0)
    assert np.allclose(a.scores[0], expected, atol=DOUBLE)
    assert a.samples_used == 200, "with the prediction and its repetition"
    assert len(np.concatenate(rows)) - 2 == len(np.unique(masks, axis=0)), "what was asked before is not asked again"


# The error


def test_the_error_is_what_the_fits_without_each_drawn_mask_show():
    masks, scores = asked(pl.LIME(), curved, place(6), 40)
    found = surrogate(masks, scores, 0.25, 1.0, whole=True)
    weights = kernel(masks, 0.25)
    without = np.stack(
        [solved(*(np.delete(part, i, 0) for part in (masks, weights, scores)), 1.0)[0] for i in range(1, 40)]
    )
    assert np.allclose(found.variance, ((without - without.mean(0)) ** 2).sum(0), rtol=1e-6)


def test_the_whole_input_is_no_draw():
    """Its share in the error would be that of a mask that could have come out otherwise."""
    masks, scores = asked(pl.LIME(), curved, place(6), 40)
    fixed, drawn = (surrogate(masks, scores, 0.25, 1.0, whole=whole).variance for whole in (True, False))
    assert (fixed < drawn).all()


@pytest.mark.parametrize("penalty", [0.0, 1.0, 30.0])
def test_intervals_cover_what_so_many_masks_aim_at(penalty, thousand):
    goal, reach = aim(curved, 6, 100, penalty), student.ppf(0.975, 99)
    fits = [surrogate(masks, scores, 0.25, penalty, whole=True) for masks, scores in thousand]
    hits = [np.abs(fit.values - goal) <= reach * np.sqrt(fit.variance) for fit in fits]
    assert 0.93 <= np.mean(hits) <= 0.97
    errors = np.mean([(fit.values - goal) ** 2 for fit in fits]) / np.mean([fit.variance for fit in fits])
    assert 0.8 <= errors <= 1.1


def test_intervals_are_not_about_the_coefficients_without_a_penalty():
    """Thirty shrinks them by many errors: what the interval is about is said, not left to be guessed."""
    off = np.abs(aim(curved, 6, 100, 30.0) - aim(curved, 6, 100, 0.0))
    masks, scores = asked(pl.LIME(), curved, place(6), 100)
    assert off.max() > 4 * np.sqrt(surrogate(masks, scores, 0.25, 30.0, whole=True).variance).max()


GOAL = Targets((pl.ClassScore(0),), OutputKind.REGRESSION)


class Toy(Answers):
    """Answers of a game that is a formula."""

    def upto(self, count: int) -> np.ndarray:
        self.known = curved(self.question.masks(range(count)))
        return self.known


def test_intervals_cover_after_stopping_at_an_error(monkeypatch):
    monkeypatch.setattr("pellucid.explainers.lime.uniform", cache(random.uniform))  # the same, each drawn once
    model = pl.FunctionModel(lambda rows: rows, output="regression")
    goals = {}
    hits, stops = [], []
    for seed in SEEDS:
        here = place(6, seed)
        answers = Toy(model, pl.LIME().question(here, 0), GOAL, here.x)
        run = Run(answers, pl.Until(error=0.3, at_most=2000), 0, "LIME")
        run.take()
        n = run.draws
        if n not in goals:
            goals[n] = aim(curved, 6, n, 1.0)
        off = np.abs(run.fitted.values - goals[n])
        hits.append(off <= student.ppf(0.975, n - 1) * np.sqrt(run.fitted.variance))
        stops.append(n)
    assert len(set(stops)) > 1
    assert 0.93 <= np.mean(hits) <= 0.97


def test_segments_that_the_masks_do_not_tell_apart_have_no_error():
    masks = np.random.default_rng(0).random((30, 4)) < 0.5
    masks[0] = True
    masks[:, 3] = masks[:, 2]
    found = surrogate(masks, masks @ [1.0, 2.0, 3.0, 4.0], 0.25, 1.0, whole=True)
    assert np.isnan(found.variance).tolist() == [False, False, True, True]
    assert found.relative() == math.inf
    assert "do not tell 2 of 4 segments apart" in found.findings[0]


def test_fewer_masks_than_show_an_error_show_none():
    """Two coefficients and a constant leave nothing over of three masks."""
    masks = np.array([[1, 1], [1, 0], [0, 1], [0, 0]], dtype=bool)
    scores = np.array([1.0, 2.0, 4.0, 3.0])
    known, few = (surrogate(masks[:n], scores[:n], 0.25, 1.0, whole=True).variance for n in (4, 3))
    assert np.isfinite(known).all()
    assert np.isnan(few).all()


def test_masks_that_come_again_show_no_error():
    """Three coefficients and a constant are fitted to four masks without a rest, however often they come."""
    masks = np.array([[1, 1, 1], [1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 1, 1]], dtype=bool)
    scores = np.array([1.0, 2.0, 4.0, 3.0, 0.0])
    few, known = (surrogate(masks[n], scores[n], 0.25, 0.0, whole=True).variance
                  for n in ([0, 1, 2, 3, 1, 2, 3], [0, 1, 2, 3, 4, 2, 3]))  # fmt: skip
    assert np.isnan(few).all()
    assert (known > 0).all()


def test_a_single_segment_has_all_its_masks():
    masks = np.array([[1], [0], [1], [0]], dtype=bool)
    assert np.isfinite(surrogate(masks, masks[:, 0] * 2.0, 0.25, 1.0, whole=True).variance).all()


# How well the surrogate follows


def test_r2_is_weighted_and_the_other_is_of_masks_left_out():
    masks, scores = asked(pl.LIME(), curved, place(6), 40)
    weights = kernel(masks, 0.25)
    total = weights @ (scores - np.average(scores, weights=weights)) ** 2
    found = surrogate(masks, scores, 0.25, 1.0, whole=True)
    b, start = solved(masks, weights, scores, 1.0)
    assert found.notes["r2"] == pytest.approx(1 - weights @ (scores - start - masks @ b) ** 2 / total)
    missed = np.empty(40)
    for i in range(40):
        b, start = solved(*(np.delete(part, i, 0) for part in (masks, weights, scores)), 1.0)
        missed[i] = scores[i] - start - masks[i] @ b
    assert found.notes["r2_left_out"] == pytest.approx(1 - weights @ missed**2 / total)


def test_a_surrogate_that_does_not_follow_is_told():
    parity = pl.FunctionModel(lambda rows: np.prod(2 * rows - 1, 1), output="regression")
    a = pl.LIME(baseline=pl.Zeros(), budget=300)(parity, torch.ones(1, 6), 0)
    assert a.recipe.notes["r2_left_out"][0] < 0.5
    assert any("The surrogate foretells" in finding.message for finding in a.findings)


def test_scores_that_never_change_are_followed_by_nothing():
    flat = pl.FunctionModel(lambda rows: np.full(len(rows), 3.1), output="regression")
    a = pl.LIME(baseline=pl.Zeros(), budget=60)(flat, torch.ones(1, 4), 0)
    assert a.scores.abs().max() < DOUBLE
    assert a.recipe.notes["r2"] == [1.0]
    assert not any("surrogate" in finding.message for finding in a.findings)


# Runs


def f(rows: np.ndarray) -> np.ndarray:
    flat = rows.reshape(len(rows), -1).astype(np.float64)
    return np.sin(flat @ np.arange(1, flat.shape[1] + 1)) + flat.sum(1)


def model(**settings) -> pl.FunctionModel:
    return pl.FunctionModel(f, output="regression", **settings)


def test_over_a_background_the_mean_score_is_followed():
    x, rows = uniform(1, 5, seed=1, dtype=torch.float64), uniform(3, 5, seed=2, dtype=torch.float64)
    bent = pl.FunctionModel(lambda given: given.sum(1) ** 2, output="regression")
    a = pl.LIME(baseline=pl.Background.of(rows), budget=602)(bent, x, 0)
    masks = pl.LIME().question(of(x, rows), 0).masks(range(200))
    scores = np.mean([np.where(masks, x, row).sum(1) ** 2 for row in rows.numpy()], 0)
    assert np.allclose(a.scores[0], surrogate(masks, scores, 0.25, 1.0, whole=True).values, atol=1e-8)


def test_masks_without_a_score_are_left_out():
    x = torch.ones(1, 6, dtype=torch.float64)
    broken = lambda rows: np.where((rows[:, 0] == 0) & (rows[:, 1] == 0), np.nan, curved(rows))  # noqa: E731
    a = pl.LIME(baseline=pl.Zeros(), budget=150)(pl.FunctionModel(broken, output="regression"), x, 0)
    masks = asked(pl.LIME(), curved, of(x), 148)[0]
    kept = masks[:, 0] | masks[:, 1]
    assert not kept.all()
    expected = surrogate(masks[kept], curved(masks[kept]), 0.25, 1.0, whole=True)
    assert np.allclose(a.scores[0], expected.values, atol=DOUBLE)
    assert any("had no score" in finding.message for finding in a.findings)


def test_it_stops_at_an_error():
    x = torch.ones(1, 6, dtype=torch.float64)
    a = pl.LIME(baseline=pl.Zeros(), budget=pl.Until(error=0.3, at_most=3000))(
        pl.FunctionModel(curved, output="regression"), x, 0
    )
    assert a.samples_used < 3000
    assert float(a.estimate.error) <= 0.3
    assert a.stopped.startswith("error")


# lime's own


def test_limes_kernel_is_the_square_root():
    masks = np.random.default_rng(0).random((20, 5)) < 0.5
    assert np.allclose(kernel(masks, pl.LIME.lime().width), np.sqrt(kernel(masks, 0.25)), rtol=1e-12)
    assert pl.LIME.lime(pl.Patches(3)).baseline == pl.SegmentMean(pl.Patches(3))
    assert pl.LIME.lime().penalty == 1


def test_a_segments_mean_is_its_own_in_each_channel_and_what_is_held_stays():
    labels = torch.tensor([[0, 0, 1], [-1, 1, -1]])
    x = torch.arange(24, dtype=torch.float64).view(2, 2, 2, 3) ** 2
    found = pl.SegmentMean(pl.SegmentMap.of(labels)).values(x)
    for row, channel in product(range(2), range(2)):
        one = x[row, channel]
        first, second = (one[labels == number].mean() for number in (0, 1))
        expected = torch.tensor([[first, first, second], [one[1, 0], second, one[1, 2]]], dtype=torch.float64)
        assert torch.allclose(found[row, channel], expected)


# Doors


@pytest.mark.doors
@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"width": 0}, "`width` is over 0"),
        ({"width": "wide"}, "`width` is a finite number"),
        ({"penalty": -1}, "`penalty` is a finite number, 0 or more"),
        ({"segments": 7}, "`segments` is a rule"),
        ({"budget": 0}, "`budget` is a whole number"),
    ],
)
def test_settings_out_of_range_are_refused(settings, words):
    with pytest.raises(pl.ArgumentError, match=words):
        pl.LIME(**settings)


@pytest.mark.doors
def test_a_budget_of_fewer_masks_than_coefficients_is_refused():
    with pytest.raises(pl.ArgumentError, match="10 model calls or more"):
        pl.LIME(budget=9)(model(), uniform(1, 6), 0)


@pytest.mark.doors
def test_a_column_has_no_mean_of_its_own():
    with pytest.raises(pl.ArgumentError, match="Background of rows"):
        pl.LIME.lime()(model(), uniform(1, 6), 0)
    with pytest.raises(pl.ArgumentError, match="`segments` is a rule"):
        pl.SegmentMean(7)

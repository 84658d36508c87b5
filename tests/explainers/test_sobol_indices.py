import math
from functools import cache

import numpy as np
import pytest
import torch
from scipy.stats import t as student
from tests.oracles import uniform

import pellucid as pl
from pellucid.core import random
from pellucid.core.prediction import OutputKind
from pellucid.core.queries import Answers, Question, Run
from pellucid.core.random import Key
from pellucid.core.target import Targets
from pellucid.explainers._queried import Place
from pellucid.explainers.sobol_indices import total_indices
from pellucid.modalities.image.heatmap import to_heatmap

SEEDS = range(1000)
DOUBLE = 1e-9  # of numbers near one, after sums of hundreds


def place(players: int, seed: int = 0) -> Place:
    one = torch.ones(1, players, dtype=torch.float64)
    return Place(one, torch.zeros_like(one), torch.arange(players), Key.named("sobol").stream(seed))


def question(players: int, seed: int = 0) -> Question:
    return pl.SobolIndices().question(place(players, seed), 0)


# Ishigami & Homma 1990: sin x1 + 7 sin^2 x2 + 0.1 x3^4 sin x1, each x uniform in [-pi, pi]


def ishigami(rows: np.ndarray) -> np.ndarray:
    x = np.asarray(rows, dtype=np.float64)
    return np.sin(x[:, 0]) + 7 * np.sin(x[:, 1]) ** 2 + 0.1 * x[:, 2] ** 4 * np.sin(x[:, 0])


def ishigamis() -> np.ndarray:
    """Its variance is a sum of three parts: of x1 alone, of x2 alone, and of x1 and x3 together."""
    first = (1 + 0.1 * math.pi**4 / 5) ** 2 / 2
    second = 7**2 / 8
    both = 8 * 0.1**2 * math.pi**8 / 225
    return np.array([first + both, second, both]) / (first + second + both)


LINEAR = np.array([1.0, 2.0, 3.0, -1.0, 0.5])
"""The variance of a sum is that of its parts, each its coefficient's square."""


def weighted(masks: np.ndarray) -> np.ndarray:
    return np.asarray(masks, dtype=np.float64) @ LINEAR


def test_ishigamis_indices_are_found_through_the_model():
    """The input is pi and the baseline -pi, so that m in [0, 1] runs through all of it."""
    x = torch.full((1, 3), math.pi, dtype=torch.float64)
    method = pl.SobolIndices(baseline=pl.Constant(-math.pi), budget=20_000)
    a = method(pl.FunctionModel(ishigami, output="regression"), x, 0)
    off = (a.scores[0].numpy() - ishigamis()) / a.standard_error[0].numpy()
    assert np.abs(off).max() < 3
    assert float(a.standard_error.max()) < 0.03
    assert np.allclose(ishigamis(), [0.5576, 0.4424, 0.2437], atol=1e-4), "as Saltelli et al. print them"


def scored(game, players: int, draws: int, seed: int = 0) -> np.ndarray:
    asked = question(players, seed)
    return game(asked.masks(range(draws * asked.size)))


def test_the_indices_of_a_sum_are_the_shares_of_its_squares():
    asked = question(5)
    fit = asked.fit(scored(weighted, 5, 4000))
    expected = LINEAR**2 / (LINEAR**2).sum()
    assert (np.abs(fit.values - expected) < 4 * np.sqrt(fit.variance)).all()
    assert fit.notes["variance"] == pytest.approx((LINEAR**2).sum() / 12, rel=0.05)


def test_what_two_do_together_counts_for_both():
    """The product of two that vary about zero: neither is worth anything without the other."""
    both = lambda m: (m[:, 0] - 0.5) * (m[:, 1] - 0.5)  # noqa: E731
    fit = question(3).fit(scored(both, 3, 4000))
    assert (np.abs(fit.values - [1, 1, 0]) <= 4 * np.sqrt(fit.variance)).all()
    assert fit.values[2] == 0


def test_the_formula_is_jansens():
    scores = scored(lambda m: np.exp(m @ [1.0, -2.0, 0.5]), 3, 12).reshape(12, 5)
    values, _, variance = total_indices(scores)
    ends = np.concatenate([scores[:, 0], scores[:, 1]])
    assert variance == pytest.approx(np.var(ends, ddof=1))
    for j in range(3):
        expected = sum((scores[i, 0] - scores[i, 2 + j]) ** 2 for i in range(12)) / (2 * 12 * np.var(ends, ddof=1))
        assert values[j] == pytest.approx(expected)


def test_the_error_is_the_jackknifes_of_the_whole_ratio():
    scores = scored(lambda m: np.exp(m @ [1.0, -2.0, 0.5]), 3, 12).reshape(12, 5)
    without = np.stack([total_indices(np.delete(scores, i, 0))[0] for i in range(12)])
    expected = 11 / 12 * ((without - without.mean(0)) ** 2).sum(0)
    assert np.allclose(total_indices(scores)[1], expected, rtol=1e-9)


def test_neither_an_offset_nor_a_factor_changes_an_index():
    scores = scored(lambda m: np.exp(m @ [1.0, -2.0, 0.5]), 3, 12).reshape(12, 5)
    one, other = total_indices(scores), total_indices(1e3 - 20 * scores)
    assert np.allclose(one[0], other[0], rtol=DOUBLE)
    assert np.allclose(one[1], other[1], rtol=1e-7)
    assert other[2] == pytest.approx(400 * one[2])


# The masks


def test_a_draw_is_two_masks_and_the_first_with_each_number_of_the_second():
    masks = question(4).masks(range(12)).reshape(2, 6, 4)
    for a, b, *mixed in masks:
        assert len(mixed) == 4
        for j, found in enumerate(mixed):
            expected = a.copy()
            expected[j] = b[j]
            assert (found == expected).all()
            assert a[j] != b[j]
    assert not (masks[0, 0] == masks[1, 0]).any()


def test_masks_are_uniform_and_the_two_are_independent():
    masks = question(30).masks(range(400 * 32))
    a, b = masks[::32], masks[1::32]
    count = a.size
    for one in (a, b):
        assert one.min() >= 0
        assert one.max() < 1
        assert abs(one.mean() - 1 / 2) < 4 / math.sqrt(12 * count)
        assert abs((one**2).mean() - 1 / 3) < 4 * math.sqrt(4 / 45 / count)
    assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 4 / math.sqrt(count)


def test_any_query_can_be_asked_for_alone():
    asked = question(4)
    assert (asked.masks([8, 3, 8]) == asked.masks(range(9))[[8, 3, 8]]).all()


def test_each_segment_fades_to_the_baseline_by_its_number_and_what_is_held_stays():
    x, absent = uniform(1, 2, 2, 3, seed=1), uniform(2, 2, 2, 3, seed=2)
    labels = torch.tensor([[0, 0, 1], [-1, 1, 1]])
    asked = pl.SobolIndices().question(Place(x, absent, labels, Key.named("held")), 0)
    assert (asked.size, asked.width) == (4, 2)
    mask = torch.from_numpy(asked.masks([2])[0]).float()
    found = asked.rows([2, 2], [0, 1])
    for copy in range(2):
        m = torch.tensor([[mask[0], mask[0], mask[1]], [1.0, mask[1], mask[1]]])
        assert torch.allclose(found[copy], absent[copy] + m * (x[0] - absent[copy]), atol=1e-6)
        assert torch.equal(found[copy, :, 1, 0], x[0, :, 1, 0])


# The error


def coverage(game, players: int, draws: int, expected: np.ndarray) -> np.ndarray:
    """Of each index."""
    reach, hits = student.ppf(0.975, draws - 1), []
    for seed in SEEDS:
        values, variance, _ = total_indices(scored(game, players, draws, seed).reshape(draws, -1))
        hits.append(np.abs(values - expected) <= reach * np.sqrt(variance))
    return np.mean(hits, 0)


def test_intervals_cover_the_shares_of_a_sum():
    found = coverage(weighted, 5, 60, LINEAR**2 / (LINEAR**2).sum())
    assert 0.93 <= found.mean() <= 0.97
    assert found.min() > 0.92


def test_intervals_cover_ishigamis_indices():
    found = coverage(lambda m: ishigami(math.pi * (2 * m - 1)), 3, 200, ishigamis())
    assert 0.93 <= found.mean() <= 0.97
    assert found.min() > 0.92


GOAL = Targets((pl.ClassScore(0),), OutputKind.REGRESSION)


class Toy(Answers):
    """Answers of a sum."""

    def upto(self, count: int) -> np.ndarray:
        self.known = weighted(self.question.masks(range(count)))
        return self.known


def test_intervals_cover_after_stopping_at_an_error(monkeypatch):
    monkeypatch.setattr("pellucid.explainers.sobol_indices.uniform", cache(random.uniform))  # the same, each drawn once
    model = pl.FunctionModel(lambda rows: rows, output="regression")
    expected, hits, stops = LINEAR**2 / (LINEAR**2).sum(), [], set()
    for seed in SEEDS:
        here = place(5, seed)
        answers = Toy(model, question(5, seed), GOAL, here.x)
        run = Run(answers, pl.Until(error=0.2, at_most=5000), 0, "Sobol")
        run.take()
        reach = student.ppf(0.975, run.draws - 1)
        hits.append(np.abs(run.fitted.values - expected) <= reach * np.sqrt(run.fitted.variance))
        stops.add(run.draws)
    assert len(stops) > 2
    assert 0.93 <= np.mean(hits) <= 0.97


# Scores that say nothing


@pytest.mark.parametrize("wiggle", [0.0, 1e-9], ids=["level", "rounding"])
def test_scores_that_never_change_have_no_shares(wiggle):
    flat = pl.FunctionModel(lambda rows: 0.7 + wiggle * np.sin(1e4 * rows.sum(1)), output="regression")
    a = pl.SobolIndices(baseline=pl.Zeros(), budget=100)(flat, torch.ones(1, 3, dtype=torch.float64), 0)
    assert not a.scores.any()
    assert torch.isnan(a.standard_error).all()
    assert a.estimate.error.tolist() == [math.inf]
    assert any("no variance to share out" in finding.message for finding in a.findings)


def test_scores_that_could_not_be_had_leave_out_what_they_belong_to():
    scores = scored(weighted, 5, 30).reshape(30, 7)
    whole = total_indices(scores)
    assert np.isfinite(whole[1]).all()
    broken = scores.copy()
    broken[3, 4] = np.nan  # of segment 2 one comparison
    values, variance, _ = total_indices(broken)
    others = [0, 1, 3, 4]
    assert np.allclose(values[others], whole[0][others])
    ends = np.var(scores[:, :2], ddof=1)
    rest = np.delete(scores, 3, 0)
    assert values[2] == pytest.approx(((rest[:, 0] - rest[:, 4]) ** 2).mean() / 2 / ends)
    assert np.isfinite(variance).all()
    for end in range(2):
        broken = scores.copy()
        broken[3, end] = np.nan
        values = total_indices(broken)[0]
        ends = np.var(rest[:, :2], ddof=1)
        kept = rest if end == 0 else scores  # A is in every comparison, B in none
        assert values[2] == pytest.approx(((kept[:, 0] - kept[:, 4]) ** 2).mean() / 2 / ends)


def test_a_segment_of_which_nothing_is_known_has_no_error():
    scores = scored(weighted, 5, 8).reshape(8, 7)
    scores[:, 3] = np.nan
    values, variance, _ = total_indices(scores)
    assert values[1] == 0
    assert np.isnan(variance).tolist() == [False, True, False, False, False]


# Runs


def f(rows: np.ndarray) -> np.ndarray:
    flat = rows.reshape(len(rows), -1).astype(np.float64)
    return np.sin(flat @ np.arange(1, flat.shape[1] + 1)) + flat.sum(1)


def model(**settings) -> pl.FunctionModel:
    return pl.FunctionModel(f, output="regression", **settings)


def test_over_a_background_the_variance_is_that_of_the_mean_score():
    x, rows = uniform(1, 3, seed=1, dtype=torch.float64), uniform(2, 3, seed=2, dtype=torch.float64)
    bent = lambda given: given.sum(1) ** 3  # noqa: E731
    method = pl.SobolIndices(baseline=pl.Background.of(rows), budget=102)
    a = method(pl.FunctionModel(bent, output="regression"), x, 0)
    here = Place(x, rows, torch.arange(3), Key.of(x[0]).stream(0))
    masks = method.question(here, 0).masks(range(50))
    scores = np.mean([bent(row + masks * (x.numpy() - row)) for row in rows.numpy()], 0)
    assert np.allclose(a.scores[0], total_indices(scores.reshape(10, 5))[0], rtol=1e-8)


def test_it_stops_at_an_error():
    x = torch.ones(1, 5, dtype=torch.float64)
    a = pl.SobolIndices(baseline=pl.Zeros(), budget=pl.Until(error=0.3, at_most=9000))(
        pl.FunctionModel(weighted, output="regression"), x, 0
    )
    assert a.samples_used < 9000
    assert float(a.estimate.error) <= 0.3
    assert a.stopped.startswith("error")


def test_it_is_drawn_without_a_sign():
    a = pl.SobolIndices(budget=90)(model(), uniform(1, 3, 4, 4), 0)
    assert not to_heatmap(a).signed
    assert to_heatmap(a).unit == "share of the variance"


@pytest.mark.doors
def test_a_budget_of_fewer_than_four_draws_is_refused():
    with pytest.raises(pl.ArgumentError, match="34 model calls or more"):
        pl.SobolIndices(budget=33)(model(), uniform(1, 6), 0)

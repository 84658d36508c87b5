import numpy as np
import pytest
import torch
from tests.explainers.masks import AllMasks, covered, shown, times
from tests.explainers.test_rise import (
    ABSENT,
    BASE,
    COEFFICIENTS,
    SIDES,
    X,
    curved,
    linear,
    masked,
    model,
    own_masks,
    place_of_x,
)

import pellucid as pl
from pellucid.core.stopping import counts
from pellucid.explainers._rise import Grid, MaskEstimator

CELLS = 2
EVERY = AllMasks.of(SIDES, CELLS)
ALL = [pl.Plain(), pl.Centred(), pl.Pairs()]
estimators = pytest.mark.parametrize("estimator", ALL, ids=lambda e: type(e).__name__)
SEEDS = 1000
CHANCE = (0.95 * 0.05 / SEEDS) ** 0.5
EVERY_SCORE = curved(masked(EVERY.values))


def explain(**settings) -> pl.DebiasedRISE:
    return pl.DebiasedRISE(**{"baseline": BASE, "cells": CELLS, "budget": 60} | settings)


def scored(masks: np.ndarray) -> np.ndarray:
    return curved(masked(masks))


def expectation(scores: np.ndarray, p: float = 0.5) -> np.ndarray:
    """E[f (m - p)] / p over all masks."""
    return EVERY.mean(times(scores, EVERY.values - p), p) / p


# ------------------------------------------------------------------ what is estimated
@estimators
@pytest.mark.parametrize("f", [linear, curved])
def test_it_is_the_covariance_over_all_masks(f, estimator):
    a = explain(budget=8002, estimator=estimator)(model(f), X)
    error = a.standard_error[0, 0].numpy()
    assert (abs(a.scores[0, 0].numpy() - expectation(f(masked(EVERY.values)))) <= 5 * error).all()
    assert error.max() < 0.1 * abs(a.scores).max()


@pytest.mark.parametrize("estimator", ALL[:2], ids=lambda e: type(e).__name__)
def test_so_it_is_for_any_share_that_is_kept(estimator):
    a = explain(budget=8002, estimator=estimator, p=0.2)(model(curved), X)
    error = a.standard_error[0, 0].numpy()
    assert (abs(a.scores[0, 0].numpy() - expectation(curved(masked(EVERY.values)), 0.2)) <= 5 * error).all()


def test_a_linear_model_has_the_closed_form():
    """Cov(m_u, m_v) = p (1 - p) K_y K_x, with K of an axis the mean over shifts of A A': the coefficients, smoothed."""
    away, grid = COEFFICIENTS * (X[0, 0].numpy() - ABSENT), Grid.of(SIDES, CELLS)
    own = [np.mean([matrix @ matrix.T for matrix in each], 0) for each in grid.enlarged]
    np.testing.assert_allclose(
        expectation(linear(masked(EVERY.values)), 0.3), 0.7 * own[0] @ away @ own[1].T, atol=1e-12
    )


def test_it_is_rise_less_the_mean_score():
    rise = pl.RISE(baseline=BASE, cells=CELLS, budget=60, p=0.3)(model(curved), X)
    plain = explain(estimator=pl.Plain(), p=0.3)(model(curved), X)
    mean = curved(masked(own_masks(rise, p=0.3))).mean()
    np.testing.assert_allclose(plain.scores.numpy(), rise.scores.numpy() - mean, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("estimator", ALL[1:], ids=lambda e: type(e).__name__)
def test_a_constant_added_to_the_score_changes_nothing(estimator):
    a, b = (explain(estimator=estimator)(model(lambda rows, c=c: linear(rows) + c), X) for c in (0, 50))
    np.testing.assert_allclose(b.scores.numpy(), a.scores.numpy(), atol=1e-11)
    np.testing.assert_allclose(b.standard_error.numpy(), a.standard_error.numpy(), atol=1e-11)
    constant = explain(estimator=estimator)(model(lambda rows: np.full(len(rows), 50.0)), X)
    assert not constant.scores.any()


def test_the_plain_mean_of_a_constant_is_zero_in_expectation_only():
    a = explain(estimator=pl.Plain(), budget=2000)(model(lambda rows: np.full(len(rows), 50.0)), X)
    assert a.scores.any()
    assert (a.scores.abs() <= 5 * a.standard_error).all()


# ------------------------------------------------------------------ estimators on their own masks
def test_centred_is_the_sample_covariance():
    a = explain(estimator=pl.Centred(), p=0.3)(model(curved), X)
    masks = own_masks(a, p=0.3)
    scores = curved(masked(masks))
    expected = times(scores - scores.mean(), masks - masks.mean(0)).sum(0) / (len(masks) - 1) / 0.3
    np.testing.assert_allclose(a.scores[0, 0].numpy(), expected, rtol=1e-10)


def test_the_error_of_centred_is_the_jackknifes():
    a = explain(estimator=pl.Centred(), p=0.3, budget=14)(model(curved), X)
    masks = own_masks(a, p=0.3)
    scores, n = curved(masked(masks)), len(masks)

    def covariance(chosen: np.ndarray) -> np.ndarray:
        s, m = scores[chosen], masks[chosen]
        return times(s - s.mean(), m - m.mean(0)).sum(0) / (len(s) - 1) / 0.3

    without = np.stack([covariance(np.arange(n) != i) for i in range(n)])
    expected = np.sqrt((n - 1) / n * ((without - without.mean(0)) ** 2).sum(0))
    np.testing.assert_allclose(a.standard_error[0, 0].numpy(), expected, rtol=1e-9)


def test_pairs_are_a_mask_and_its_complement():
    a = explain(estimator=pl.Pairs(), budget=61)(model(curved), X)
    masks = own_masks(a)
    assert len(masks) == 29, "59 calls are left, and one of them has no partner"
    halves = (curved(masked(masks)) - curved(masked(1 - masks))) / 2
    products = times(halves, masks - 0.5) / 0.5
    np.testing.assert_allclose(a.scores[0, 0].numpy(), products.mean(0), rtol=1e-10)
    expected = products.std(0, ddof=1) / len(masks) ** 0.5
    np.testing.assert_allclose(a.standard_error[0, 0].numpy(), expected, rtol=1e-9)
    assert a.samples_used == 60


def test_a_pair_of_which_one_score_is_missing_is_left_out():
    def gappy(rows: np.ndarray) -> np.ndarray:
        scores = curved(rows)  # of the input itself there is one
        return np.where((scores > np.quantile(EVERY_SCORE, 0.9)) & (scores < curved(X.numpy())), np.nan, scores)

    a = explain(estimator=pl.Pairs(), budget=100)(model(gappy), X)
    masks = own_masks(a)
    halves = (gappy(masked(masks)) - gappy(masked(1 - masks))) / 2
    known = np.isfinite(halves)
    assert 0 < known.sum() < len(masks)
    expected = times(halves[known], masks[known] - 0.5).mean(0) / 0.5
    np.testing.assert_allclose(a.scores[0, 0].numpy(), expected, rtol=1e-10)


def test_too_few_scores_are_refused():
    question = explain(estimator=pl.Centred()).masking(place_of_x(), pl.Centred())
    with pytest.raises(pl.ModelError, match="needs 3 masks with scores, but only 2 of 3 have them"):
        question.fit(np.array([1.0, np.nan, 2.0]))


# ------------------------------------------------------------------ standard errors
@pytest.mark.parametrize(
    ("estimator", "p", "n"),
    [(pl.Plain(), 0.5, 32), (pl.Centred(), 0.5, 32), (pl.Pairs(), 0.5, 32), (pl.Plain(), 0.3, 256),
     (pl.Centred(), 0.3, 256)],
    ids=str,
)  # fmt: skip
def test_intervals_cover(estimator, p, n):
    """With p = 0.3 and 4 bits the products are skewed, so that there must be more of them for Student's t to hold."""
    true = expectation(curved(masked(EVERY.values)), p)
    found = np.mean([covered(shown(estimator, SIDES, scored, seed, p, n)(n), true, n) for seed in range(SEEDS)], 0)
    assert 0.93 <= found.mean() <= 0.97
    assert 0.93 - 2 * CHANCE <= found.min() <= found.max() <= 0.97 + 2 * CHANCE


@estimators
def test_intervals_cover_where_a_run_stops_early(estimator):
    true, until = expectation(curved(masked(EVERY.values))), pl.Until(error=0.3, at_most=400)
    looks, hits, stops = counts(until, estimator.size), [], []
    for seed in range(SEEDS):
        show = shown(estimator, SIDES, scored, seed, 0.5, looks[-1])
        n, fit = next((n, fit) for n in looks if (fit := show(n)).relative() <= until.error or n == looks[-1])
        hits.append(covered(fit, true, n))
        stops.append(n)
    found = np.mean(hits, 0)
    assert len(set(stops)) > 2
    assert 0.93 <= found.mean() <= 0.97
    assert 0.93 - 2 * CHANCE <= found.min() <= found.max() <= 0.97 + 2 * CHANCE


@estimators
def test_a_run_stops_where_its_error_is_reached(estimator):
    """At one of the looks, and not at one before; the same as if so many calls had been asked for."""
    until = pl.Until(error=0.3, at_most=400)
    a = explain(estimator=estimator, budget=until)(model(curved), X)
    n = int(a.estimate.state["draws"][0])
    assert n in counts(until, estimator.size)
    assert a.samples_used == n * estimator.size + 2
    assert (
        float(a.estimate.error[0])
        <= 0.3
        < float(
            explain(estimator=estimator, budget=2 + _before(n, until, estimator) * estimator.size)(
                model(curved), X
            ).estimate.error[0]
        )
    )
    same = explain(estimator=estimator, budget=a.samples_used)(model(curved), X)
    assert torch.equal(same.scores, a.scores)


def _before(n: int, until: pl.Until, estimator: MaskEstimator) -> int:
    return max(look for look in counts(until, estimator.size) if look < n)


@estimators
def test_an_extended_run_is_one_long_run(estimator):
    a, b = (explain(estimator=estimator, budget=n)(model(curved), X) for n in (40, 100))
    longer = a.extend(model(curved), X, 60)
    assert torch.equal(longer.scores, b.scores)
    assert torch.equal(longer.standard_error, b.standard_error)


@estimators
def test_a_map_does_not_depend_on_its_company_nor_on_the_micro_batch(estimator):
    x = torch.cat([X, 2 * X])
    together = explain(estimator=estimator)(model(curved), x)
    for rows in (1, 7):
        assert torch.equal(explain(estimator=estimator)(model(curved, micro_batch=rows), x).scores, together.scores)
    assert torch.equal(explain(estimator=estimator)(model(curved), x[1:]).scores[0], together.scores[1])


@estimators
def test_the_caption_says_which_estimator(estimator):
    assert explain(estimator=estimator).estimator.words in ("plain mean", "centred scores", "complementary pairs")
    assert "estimator" in str(explain(estimator=estimator)(model(), X).recipe.explainer)


@pytest.mark.doors
@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"estimator": pl.Pairs}, "`estimator` is one such as Centred"),
        ({"estimator": "pairs"}, "with its parentheses. Got 'pairs'"),
        ({"estimator": pl.Pairs(), "p": 0.3}, r"as likely only with p=0.5. Got p=0.3. Take Centred\(\)"),
        ({"p": 1.5}, "`p` is the share that masks keep"),
    ],
)
def test_settings_out_of_range_are_refused(settings, said):
    with pytest.raises(pl.ArgumentError, match=said):
        pl.DebiasedRISE(**settings)

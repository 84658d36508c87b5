from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import t as student
from tests.explainers.games import as_model, quadratic, random_game

import pellucid as pl
from pellucid.core.random import Key
from pellucid.explainers._queried import Place
from pellucid.explainers._shapley import paired_sets

ONES = torch.ones(1, 12, dtype=torch.float64)
sampled = pl.KernelSHAP(baseline=pl.Zeros(), budget=300)


@pytest.mark.parametrize("players", [3, 8, 12])
def test_all_sets_of_few_segments_give_the_values_themselves(players):
    model, phi = quadratic(players)
    a = replace(sampled, budget=5000)(model, ONES[:, :players])
    assert np.allclose(a.scores[0], phi, atol=1e-10)
    assert not a.standard_error.any()
    assert float(a.estimated_error) == 0


def test_an_additive_game_is_exact_from_any_sample():
    weights = torch.linspace(-3, 3, 30, dtype=torch.float64)
    model = pl.FunctionModel(lambda rows: rows @ weights.numpy(), output="regression")
    a = replace(sampled, budget=80)(model, torch.ones(1, 30, dtype=torch.float64))
    assert torch.allclose(a.scores[0], weights, atol=1e-12)
    assert float(a.standard_error.max()) < 1e-10


def test_a_game_of_pairs_is_exact_from_any_sample():
    """Complementary pairs see its odd part only, which is additive."""
    rng = np.random.default_rng(0)
    pairs = np.triu(rng.normal(size=(30, 30)), 1)
    model = pl.FunctionModel(lambda rows: np.einsum("bi,ij,bj->b", rows, pairs, rows), output="regression")
    a = replace(sampled, budget=80)(model, torch.ones(1, 30, dtype=torch.float64))
    assert np.allclose(a.scores[0], (pairs.sum(0) + pairs.sum(1)) / 2, atol=1e-10)


@pytest.mark.parametrize("estimator", [pl.Regression(), pl.PairedGP()])
def test_values_divide_the_change_and_the_residual_says_so(estimator):
    model, _ = quadratic(20)
    x = torch.ones(1, 20, dtype=torch.float64)
    a = replace(sampled, estimator=estimator)(model, x)
    change = float(model.function(x.numpy())[0])
    assert float(a.scores.sum()) == pytest.approx(change, rel=1e-12)
    assert a.recipe.notes["change"] == pytest.approx([change])
    assert abs(float(a.residual)) < 1e-12


def test_what_is_present_is_the_input_and_what_is_absent_the_baseline():
    model = pl.FunctionModel(lambda rows: rows @ [1.0, 10.0], output="regression")
    a = pl.KernelSHAP(baseline=pl.Constant(2.0))(model, torch.tensor([[5.0, 3.0]]))
    assert a.scores.tolist() == [[3.0, 10.0]]


PLACE = Place(ONES, torch.zeros_like(ONES), torch.arange(12), Key.named("toy"))


def toy(seeds, pairs, players=12):
    """Estimates and standard errors of a game with triples over many seeds, and its values."""
    model, phi = quadratic(players, seed=3)
    estimates, errors = [], []
    for seed in seeds:
        sets = paired_sets(Key.named("toy").stream(seed), range(pairs), players)
        halves = (model.function(sets * 1.0) - model.function(1.0 - sets)) / 2
        fit = pl.Regression().shapley(np.where(sets, 1.0, -1.0), halves, PLACE)
        estimates.append(fit.values)
        errors.append(np.sqrt(fit.variance))
    return np.array(estimates), np.array(errors), phi


@pytest.mark.parametrize("pairs", [60, 150])  # the error is believed from four pairs for each segment
def test_intervals_hold_the_value_in_95_percent_of_cases(pairs):
    estimates, errors, phi = toy(range(1000), pairs)
    width = student.ppf(0.975, pairs - 12)
    inside = np.abs(estimates - phi) <= width * errors
    assert 0.93 <= inside.mean() <= 0.97


def test_intervals_hold_also_after_stopping_early():
    model, phi = quadratic(12, seed=3)
    inside = []
    for seed in range(1000):
        explain = pl.KernelSHAP(baseline=pl.Zeros(), budget=pl.Until(error=0.12, at_most=1000), seed=seed)
        a = explain(model, ONES)
        width = student.ppf(0.975, a.samples_used // 2 - 12)
        inside.append(np.abs(a.scores[0].numpy() - phi) <= width * a.standard_error[0].numpy())
    assert 0.93 <= np.mean(inside) <= 0.97


def test_the_predicted_error_is_the_true_one():
    estimates, errors, phi = toy(range(300), 100)
    true, predicted = ((estimates - phi) ** 2).mean(), (errors**2).mean()
    # Even sizes make the true error a little smaller than that of independent pairs.
    assert 0.85 < true / predicted < 1.1


def test_segments_that_cannot_be_told_apart_have_no_error_and_it_is_said():
    def never_alone(rows):
        values = rows @ np.arange(1.0, 17.0)
        return np.where((rows[:, 0] > 0) == (rows[:, 1] > 0), values, np.nan)

    a = sampled(pl.FunctionModel(never_alone, output="regression"), torch.ones(1, 16, dtype=torch.float64))
    assert a.standard_error[0].isnan().tolist() == [True, True] + [False] * 14
    assert any("2 segments cannot be told from each other" in f.message for f in a.findings)
    assert float(a.estimated_error) == float("inf")


def test_pairs_that_are_fitted_in_any_case_show_no_error():
    """Four values that divide a change are three; three different pairs leave no rest, however often they come."""
    signs = np.array([[1, 1, 1, 1], [1, -1, -1, -1], [-1, 1, -1, -1], [-1, -1, 1, -1], [1, 1, -1, -1.0]])
    halves = np.array([3.0, 1.0, 4.0, 1.0, 5.0])
    place = Place(ONES[:, :4], ONES[:, :4], torch.arange(4), Key.named("x"))

    def fit(pairs, complements=()):
        side = np.where(np.isin(np.arange(len(pairs)), complements), -1.0, 1.0)
        return pl.Regression().shapley(signs[pairs] * side[:, None], halves[pairs] * side, place)

    few, enough = fit([0, 1, 1, 2, 2, 3, 3], complements=[2, 4]), fit([0, 1, 2, 3, 4, 1])
    assert np.isnan(few.variance).all()
    assert few.relative() == float("inf")
    assert "3 different pairs of sets fit 4 segments" in few.findings[0]
    assert np.isfinite(enough.variance).all()
    assert enough.variance.min() > 0
    assert not enough.findings


def test_another_seed_draws_other_sets_and_the_same_seed_the_same():
    model, x = quadratic(20)[0], torch.ones(1, 20, dtype=torch.float64)
    one, same, other = (replace(sampled, seed=seed)(model, x).scores for seed in (0, 0, 1))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_a_random_game_of_12_is_met_within_its_error():
    game = random_game(12, 7)
    exact = replace(sampled, budget=5000)(as_model(game), ONES)
    drawn = replace(sampled, budget=2000)(as_model(game), ONES)
    ratio = (drawn.scores - exact.scores) / drawn.standard_error
    assert float(ratio.abs().max()) < 5


def test_the_card_names_calls():
    card = pl.KernelSHAP(budget=77).card
    assert (card.cost.forward, card.access, card.per) == (77, "black-box", "segment")

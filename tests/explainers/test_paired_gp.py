from dataclasses import replace

import numpy as np
import pytest
import torch
from tests.explainers.games import quadratic
from tests.oracles import conv_net, uniform

import pellucid as pl
from pellucid.core.random import Key
from pellucid.explainers._queried import Place

shap = pl.KernelSHAP(estimator=pl.PairedGP(), baseline=pl.Zeros(), budget=120)


def test_few_segments_are_exact_whatever_the_estimator():
    model, phi = quadratic(6)
    a = shap(model, torch.ones(1, 6, dtype=torch.float64))
    assert np.allclose(a.scores[0], phi)


def test_it_has_less_error_than_the_regression_from_the_same_calls():
    """On a network that looks at places, with 36 segments."""
    model, x = pl.TorchModel(conv_net(dtype=torch.float64)), uniform(1, 3, 12, 12, seed=3, dtype=torch.float64)
    plain = replace(shap, segments=pl.Patches(6), estimator=pl.Regression())
    halves = [replace(plain, budget=3000, seed=seed)(model, x).by_segment for seed in (8, 9)]

    def errors(explain):
        found = [replace(explain, seed=seed)(model, x).by_segment for seed in range(4)]
        return [float((phi - halves[0]) @ (phi - halves[1]) / (halves[0] @ halves[1])) for phi in found]

    assert np.mean(errors(replace(plain, estimator=pl.PairedGP()))) < 0.7 * np.mean(errors(plain))


@pytest.mark.parametrize("segments", [pl.Patches(3), pl.Superpixels(count=9), pl.Patches((2, 5))])
def test_any_segments_serve(segments):
    x = uniform(1, 3, 16, 16, seed=1)
    a = replace(shap, segments=segments)(pl.TorchModel(conv_net()), x)
    change = float(a.recipe.notes["change"][0])
    assert float(a.by_segment.sum()) == pytest.approx(change, rel=1e-4)
    assert torch.isfinite(a.scores).all()


def test_a_table_serves():
    model, phi = quadratic(30)
    a = replace(shap, budget=500)(model, torch.ones(1, 30, dtype=torch.float64))
    ratio = (a.scores[0].numpy() - phi) / a.standard_error[0].numpy()
    assert np.abs(ratio).max() < 5
    assert np.corrcoef(a.scores[0], phi)[0, 1] > 0.95


def test_the_order_of_a_tables_columns_means_nothing_also_where_they_are_grouped_or_held():
    signs = np.where(uniform(20, 4, seed=5).numpy() > 0, 1.0, -1.0)
    signs[0] = 1.0
    halves = signs @ [1.0, 2.0, -1.0, 0.5]
    x = torch.ones(1, 7)

    def fit(labels, x=x):
        return pl.PairedGP().shapley(signs, halves, Place(x, x, torch.tensor(labels), Key.named("x")))

    one, other = fit([0, 1, 1, 2, 3, 3, -1]), fit([3, 1, -1, 0, 3, 2, 1])
    assert np.array_equal(one.values, other.values)
    assert np.array_equal(one.variance, other.variance)
    signal = fit([0, 1, 1, 2, 3, 3, -1], torch.ones(1, 2, 7))  # whose steps have an order
    assert not np.array_equal(one.variance, signal.variance)


def test_it_is_not_believed_before_its_weights_are_known():
    model = pl.FunctionModel(lambda rows: rows.mean((1, 2, 3)), output="regression")
    loose, x = pl.Until(error=100, at_most=400), uniform(1, 1, 12, 12)
    for explain in (replace(shap, segments=pl.Patches(4)), pl.DebiasedRISE(cells=4, estimator=pl.PairedGP())):
        a = replace(explain, budget=loose)(model, x)
        assert 2 * 32 <= a.samples_used < 400, explain


def test_where_its_process_finds_nothing_no_error_is_shown_and_it_is_said():
    rng = np.random.default_rng(0)
    model = pl.FunctionModel(lambda rows: rng.normal(size=len(rows)), output="regression")
    a = shap(model, torch.ones(1, 40))
    assert a.standard_error is None
    assert float(a.estimated_error) == float("inf")
    assert any("no error is shown" in finding.message for finding in a.findings)


def test_it_says_what_it_is():
    assert pl.PairedGP().words == "Gaussian process on pairs"
    assert pl.PairedGP().least(49) < pl.Regression().least(49)

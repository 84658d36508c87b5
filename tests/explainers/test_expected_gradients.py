import numpy as np
import pytest
import torch
from tests.explainers.paths import Several, gradient, near, seeded, several, tanh_net
from tests.oracles import Linear, Power, uniform
from torch import Tensor

import pellucid as pl
from pellucid.core.random import Key
from pellucid.core.random import uniform as stream_values

X = torch.linspace(-1, 1, 8, dtype=torch.float64)[None]
CUBIC = pl.TorchModel(Power(3, 1.0, 2.0))
START = 0.4
ONE = (pl.Constant(START),)
ROWS = 2 * uniform(6, 8, seed=9, dtype=torch.float64) - 1


def spread(x: Tensor, start: float = START) -> Tensor:
    """The standard deviation of one sample 3 (x - x') (x' + a (x - x'))^2 over a from 0 to 1."""
    return (9 * (x - start) * (x**5 - start**5) / 5 - (x**3 - start**3) ** 2).clamp(min=0).sqrt()


def test_of_one_baseline_it_is_integrated_gradients_in_expectation():
    a = pl.ExpectedGradients(baselines=ONE, n_samples=4000)(CUBIC, X, target=0)
    expected = pl.IntegratedGradients(baseline=pl.Constant(START))(CUBIC, X, target=0).scores
    torch.testing.assert_close(expected, X**3 - START**3)
    true_error = spread(X) / 4000**0.5
    assert ((a.scores - expected).abs() <= 5 * true_error).all()
    torch.testing.assert_close(a.standard_error, true_error, rtol=0.15, atol=0)


def test_its_standard_error_is_calibrated():
    """Over 1200 independent maps: the deviations' squares in units of the true error, and of the reported one, have
    means of 1 within five standard errors of these means; the deviations themselves a mean of 0.
    """
    x, n = 3 * uniform(400, 2, seed=3, dtype=torch.float64) - 1, 60
    true, own = [], []
    for seed in range(3):
        a = pl.ExpectedGradients(baselines=ONE, n_samples=n, seed=seed)(CUBIC, x, target=0)
        off = a.scores - (x**3 - START**3)
        true.append((off / (spread(x) / n**0.5))[:, 0])
        own.append((a.standard_error / (spread(x) / n**0.5))[:, 0])
    z, ratio = torch.cat(true), torch.cat(own).square()
    for values, mean in ((z, 0.0), (z.square(), 1.0), (ratio, 1.0)):
        assert abs(float(values.mean()) - mean) <= 5 * float(values.std()) / len(values) ** 0.5
    assert float(ratio.std()) < 0.5, "so that the mean of 1 says something"


def test_it_is_the_mean_over_the_very_samples_of_the_stream():
    background = pl.Background.of(ROWS)
    a = pl.ExpectedGradients(baselines=background, n_samples=5, seed=3)(CUBIC, X, target=1)
    maps = []
    for i in range(5):
        row, alpha = stream_values(Key.of(X[0]).stream(3), i, 2)
        start = ROWS[int(row * 6)]
        maps.append(2 * 3 * (X - start) * (start + alpha * (X - start)) ** 2)
    assert near(a.scores, torch.stack(maps).mean(0), 1e-12)
    assert near(a.standard_error, torch.stack(maps).std(0) / 5**0.5, 1e-10)


def test_the_rows_of_a_background_are_taken_alike_often():
    """Of f = sum x at x = 0 a sample is minus its row: unit rows count how often each was taken. Chi-square."""
    from scipy.stats import chi2

    model, n = pl.TorchModel(Linear(torch.ones(2, 8, dtype=torch.float64))), 6000
    background = pl.Background.of(-torch.eye(8, dtype=torch.float64))
    explain = pl.ExpectedGradients(baselines=background, n_samples=n)
    counts = (explain(model, torch.zeros_like(X), target=0).scores[0] * n).round()
    assert int(counts.sum()) == n
    assert float(((counts - n / 8) ** 2 / (n / 8)).sum()) < chi2.ppf(1 - 1e-5, 7)


def test_the_baselines_of_a_tuple_are_taken_alike_often():
    a = pl.ExpectedGradients(baselines=(pl.Zeros(), pl.Constant(1.0)), n_samples=4000)(CUBIC, X, target=0)
    assert ((a.scores - (X**3 - 0.5)).abs() <= 5 * a.standard_error).all()
    assert ((a.scores - X**3).abs() > 5 * a.standard_error).any()


def test_row_and_place_on_the_way_are_independent():
    """E over rows r of x^3 - r^3; if one number chose both, each row would see its own part of the way only."""
    a = pl.ExpectedGradients(baselines=pl.Background.of(ROWS), n_samples=4000)(CUBIC, X, target=0)
    expected = X**3 - (ROWS**3).mean(0)
    assert ((a.scores - expected).abs() <= 5 * a.standard_error).all()
    assert float(a.standard_error.max()) < 0.05 * float(expected.abs().max())


def test_its_sum_is_the_change_from_the_mean_score_of_the_background():
    net, background = tanh_net(8), pl.Background.of(ROWS)
    a = pl.ExpectedGradients(baselines=background, n_samples=3000)(pl.TorchModel(net), X + 1, target=1)
    change = float((net(X + 1)[0, 1] - net(ROWS)[:, 1].mean()).detach())
    assert abs(float(a.scores.sum()) - change) <= 5 * float(a.standard_error.sum())
    assert float(a.standard_error.sum()) < 0.2 * abs(change)


def test_each_input_of_a_batch_has_its_own_baselines_target_and_samples():
    """The mean of each input is another baseline for each; those of one key share places and choices."""
    x = torch.cat([X, X + 1, X])
    explain = pl.ExpectedGradients(baselines=(pl.FeatureMean(),), n_samples=2000)
    a = explain(CUBIC, x, target=[0, 0, 1])
    for row, factor in enumerate((1, 1, 2)):
        mean = x[row].mean()
        assert ((a.scores[row] - factor * (x[row] ** 3 - mean**3)).abs() <= 5 * a.standard_error[row]).all()
    torch.testing.assert_close(a.scores[2], 2 * a.scores[0], rtol=1e-12, atol=0)


@pytest.mark.parametrize("baselines", [pl.Background.of(ROWS), (pl.Zeros(), pl.FeatureMean())], ids=["rows", "tuple"])
@pytest.mark.parametrize("rows", [1, 2, 7, 64])
def test_neither_the_micro_batch_nor_the_company_changes_a_map(baselines, rows):
    explain, x = pl.ExpectedGradients(baselines=baselines, n_samples=9), torch.cat([X, X + 1, 2 * X])
    whole = explain(pl.TorchModel(tanh_net(8)), x, target=[0, 1, 1])
    for i, target in enumerate([0, 1, 1]):
        alone = explain(pl.TorchModel(tanh_net(8), micro_batch=rows), x[i : i + 1], target=target)
        assert near(alone.scores[0], whole.scores[i], 1e-12)


def test_a_single_sample_is_a_map_without_an_error():
    a = pl.ExpectedGradients(baselines=ONE, n_samples=1)(CUBIC, X, target=0)
    alpha = stream_values(Key.of(X[0]).stream(0), 0, 2)[1]
    assert near(a.scores, 3 * (X - START) * (START + alpha * (X - START)) ** 2, 1e-12)
    assert a.standard_error is None
    assert a.samples_used == 1


def test_more_samples_go_on_where_it_stopped(tmp_path):
    model, background = pl.TorchModel(tanh_net(8)), pl.Background.of(ROWS)
    first, whole = (pl.ExpectedGradients(baselines=background, n_samples=n)(model, X, target=1) for n in (20, 53))
    loaded = pl.Attribution.load(first.save(tmp_path / "a.safetensors"))
    for longer in (first.extend(model, X, 33), loaded.extend(model, X, 13).extend(model, X, 20)):
        assert torch.equal(longer.scores, whole.scores)
        assert torch.equal(longer.standard_error, whole.standard_error)
        assert longer.recipe.explainer == whole.recipe.explainer


def test_it_samples_until_the_map_is_as_certain_as_was_asked_for():
    x = torch.cat([X, X + 2])
    explain = pl.ExpectedGradients(baselines=ONE, n_samples=pl.Until(error=0.1, at_most=5000))
    a = explain(CUBIC, x, target=0)
    assert (a.estimated_error <= 0.1).all()
    assert max(a.estimate.samples) < 5000
    assert len(set(a.estimate.samples)) == 2
    for i in range(2):
        alone = pl.ExpectedGradients(baselines=ONE, n_samples=a.estimate.samples[i])(CUBIC, x[i : i + 1], target=0)
        assert torch.equal(alone.scores[0], a.scores[i])


def test_a_stored_result_runs_again_where_the_background_is(tmp_path, monkeypatch):
    background, model = pl.Background.of(ROWS), pl.TorchModel(tanh_net(8))
    a = pl.ExpectedGradients(baselines=background, n_samples=6)(model, X, target=1)
    loaded = pl.Attribution.load(a.save(tmp_path / "a.safetensors"))
    assert torch.equal(loaded.reproduce(model, X).scores, a.scores)
    monkeypatch.setattr(pl.Background, "_kept", {})
    with pytest.raises(pl.RecipeError, match=r"of 6 inputs is not here. Make it again: Background.of\(rows\)"):
        loaded.reproduce(model, X)
    assert pl.Background.of(ROWS) == background
    assert torch.equal(loaded.reproduce(model, X).scores, a.scores)


def test_of_several_inputs_what_is_held_stays_each_inputs_own():
    """At other groups than its own an input would have another map."""
    net, parts = seeded(Several), several()
    rows = {
        name: torch.cat([part.flip(0), 1 - part if part.is_floating_point() else part]) for name, part in parts.items()
    }
    rows["group"] = (rows["group"] + 1) % 4
    background = pl.Background.of(rows)
    a = pl.ExpectedGradients(baselines=background, n_samples=4, seed=1)(pl.TorchModel(net), parts, target=1)
    assert list(a.parts) == ["vector", "picture"]
    assert not a.scores[:, -2:].any()
    for b in range(2):
        own = {name: part[b : b + 1] for name, part in parts.items()}
        stream, maps = Key.of(pl.Input.of(parts).tensor[b]).stream(1), []
        for i in range(4):
            row, alpha = stream_values(stream, i, 2)
            start = {name: part[int(row * 4)][None] for name, part in rows.items()}
            point = {name: start[name] + alpha * (own[name] - start[name]) for name in ("vector", "picture")}
            by = gradient(lambda v, p=point, o=own: net(v, p["picture"], o["group"])[:, 1], point["vector"])
            maps.append((own["vector"] - start["vector"]) * by)
        assert near(a.parts["vector"][b : b + 1], torch.stack(maps).mean(0))


def test_with_noise_on_the_input_it_is_gradient_shap():
    """E over noise e, rows r and the way: (x + e)^3 - r^3, that is x^3 + 3 x sigma^2 - r^3."""
    sigma, background = 0.7, pl.Background.of(ROWS)
    base = pl.ExpectedGradients(baselines=background, n_samples=1)
    explain = pl.SmoothGrad(base=base, n_samples=6000, noise_level=pl.NoiseLevel.absolute(sigma))
    a = explain(CUBIC, X, target=0)
    expected = X**3 + 3 * X * sigma**2 - (ROWS**3).mean(0)
    assert ((a.scores - expected).abs() <= 5 * a.standard_error).all()
    assert (3 * X.abs().max() * sigma**2 > 10 * a.standard_error).all()


@pytest.mark.doors
def test_a_background_of_another_shape_is_refused():
    background = pl.Background.of(uniform(3, 5))
    with pytest.raises(pl.ArgumentError, match=r"Expected a background of inputs \(8,\), but it holds \(5,\)"):
        pl.ExpectedGradients(baselines=background)(CUBIC, X, target=0)


@pytest.mark.doors
def test_a_background_that_was_not_made_here_is_named():
    with pytest.raises(pl.RecipeError, match="The background 00ff of 3 inputs is not here"):
        pl.ExpectedGradients(baselines=pl.Background("00ff", 3))(CUBIC, X, target=0)


@pytest.mark.doors
@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"baselines": ()}, r"`baselines` is pl.Background.of\(rows\), or a tuple such as"),
        ({"baselines": pl.Zeros()}, "or a tuple such as"),
        ({"baselines": (pl.Zeros(), 0.5)}, "or a tuple such as"),
        ({"baselines": ROWS}, r"pl.Background.of\(rows\)"),
        ({"n_samples": 0}, r"`n_samples` is a whole number, 1 or more, or pl.Until"),
        ({"seed": -1}, "`seed` is a whole number from 0"),
    ],
)
def test_wrong_settings_say_what_to_write(settings, words):
    with pytest.raises(pl.ArgumentError, match=words):
        pl.ExpectedGradients(**settings)


def test_uniform_values_are_those_of_the_stream_and_lie_from_0_to_1():
    values = np.stack([stream_values(Key.named("x"), i, 3) for i in range(2000)])
    assert values.min() >= 0
    assert values.max() < 1
    assert len(np.unique(values)) == values.size
    error = np.sqrt(1 / 12 / values.size)
    assert abs(values.mean() - 0.5) <= 5 * error
    assert abs((values**2).mean() - 1 / 3) <= 5 * np.sqrt(4 / 45 / values.size)

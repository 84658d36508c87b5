import math

import numpy as np
import pytest
import torch
from tests.oracles import Linear, Power, Quadratic, conv_net, uniform

import pellucid as pl
from pellucid.core.random import Key, normal

X = torch.linspace(-1, 1, 8, dtype=torch.float64)[None]
SIGMA = 0.15 * 2.0  # noise level 0.15 of a range of 2
CUBIC = pl.TorchModel(Power(3, 1.0, 2.0))


def within(found: torch.Tensor, expected: torch.Tensor, error: torch.Tensor, deviations: float = 5.0) -> bool:
    return bool(((found - expected).abs() <= deviations * error).all())


def test_linear_network_gives_its_weights_without_error():
    weight = uniform(2, 6, dtype=torch.float64)
    a = pl.SmoothGrad(n_samples=10)(pl.TorchModel(Linear(weight)), X[:, :6], target=1)
    torch.testing.assert_close(a.scores, weight[1:2], rtol=1e-12, atol=0)
    assert float(a.standard_error.max()) < 1e-12


def test_cubic_network_tells_the_unit_of_sigma():
    """E[3 (x + e)^2] = 3 (x^2 + sigma^2), Var = 36 x^2 sigma^2 + 18 sigma^4: sigma is 0.15 of max - min."""
    a = pl.SmoothGrad(n_samples=4000)(CUBIC, X, target=0)
    true_error = torch.sqrt((36 * X**2 * SIGMA**2 + 18 * SIGMA**4) / 4000)
    assert within(a.scores, 3 * (X**2 + SIGMA**2), true_error)
    torch.testing.assert_close(a.standard_error, true_error, rtol=0.15, atol=0)


def test_noise_is_the_fraction_of_each_inputs_own_range():
    x = torch.cat([X, 10 * X])
    a = pl.SmoothGrad(n_samples=2000)(CUBIC, x, target=0)
    for row, sigma in enumerate((SIGMA, 10 * SIGMA)):
        true_error = torch.sqrt((36 * x[row] ** 2 * sigma**2 + 18 * sigma**4) / 2000)
        assert within(a.scores[row], 3 * (x[row] ** 2 + sigma**2), true_error)


def test_absolute_sigma_ignores_the_range():
    a = pl.SmoothGrad(n_samples=2000, noise_level=pl.NoiseLevel.absolute(0.5))(CUBIC, 10 * X, target=0)
    true_error = torch.sqrt((36 * (10 * X) ** 2 * 0.25 + 18 * 0.5**4) / 2000)
    assert within(a.scores, 3 * ((10 * X) ** 2 + 0.25), true_error)


def test_it_is_the_mean_over_the_very_copies_of_the_stream():
    a = pl.SmoothGrad(n_samples=5, seed=3)(CUBIC, X, target=0)
    stream = Key.of(X[0]).stream(3)
    copies = [X[0].numpy() + SIGMA * normal(stream, i, (8,)).astype(np.float64) for i in range(5)]
    expected = np.mean([3 * copy**2 for copy in copies], 0)
    np.testing.assert_allclose(a.scores[0], expected, rtol=1e-12)


def test_the_target_is_settled_on_the_clean_input():
    """At x = 0.1 class 1 wins by little; most noisy copies would choose class 0, whose gradient has another sign."""
    net = Linear(torch.tensor([[-1.0, 0.0], [1.0, 0.0]]))
    a = pl.SmoothGrad(noise_level=pl.NoiseLevel.absolute(5.0), n_samples=20)(
        pl.TorchModel(net), torch.tensor([[0.1, 3]])
    )
    assert a.target == pl.ClassScore(1)
    assert a.scores.tolist() == [[1.0, 0.0]]


def test_the_copies_of_each_input_keep_its_target():
    a = pl.SmoothGrad(n_samples=3)(CUBIC, torch.cat([X, X]), target=[0, 1], key="pair")
    torch.testing.assert_close(a.scores[1], 2 * a.scores[0], rtol=1e-12, atol=0)


def test_a_seed_gives_its_map_again_and_another_seed_another():
    model, x = pl.TorchModel(conv_net()), uniform(1, 3, 9, 9)
    first, again, other = (pl.SmoothGrad(n_samples=6, seed=s)(model, x).scores for s in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.allclose(first, other)


def test_inputs_of_a_batch_get_independent_noise():
    x = torch.cat([X, X + 1e-3])
    a = pl.SmoothGrad(n_samples=50)(CUBIC, x, target=0)
    noise = (a.scores - 3 * (x**2 + SIGMA**2)) / a.standard_error
    assert not torch.allclose(noise[0], noise[1], atol=0.5)


def test_a_shared_key_shares_the_noise():
    x = torch.cat([X, X + 1e-6])
    a = pl.SmoothGrad(n_samples=50)(CUBIC, x, target=0, key="pair")
    torch.testing.assert_close(a.scores[0], a.scores[1], rtol=1e-4, atol=1e-4)
    assert a.recipe.keys[0] == a.recipe.keys[1] != a.recipe.inputs[0]


def test_standard_error_is_calibrated():
    """Quadratic: the gradient is normal, so 95 % intervals with Student's t cover 95 % over 1000 seeds."""
    from scipy.stats import t

    model, c = pl.TorchModel(Quadratic(torch.tensor([1.0, -2.0]))), torch.tensor([1.0, -2.0], dtype=torch.float64)
    x = torch.tensor([[0.0, 1.0]], dtype=torch.float64)
    model.net.double()
    hits = []
    for seed in range(1000):
        a = pl.SmoothGrad(n_samples=10, seed=seed)(model, x, target=1)
        hits.append((a.scores - c * x).abs() <= t.ppf(0.975, 9) * a.standard_error)
    assert 0.93 <= float(torch.cat(hits).double().mean()) <= 0.97


def test_any_explainer_can_be_the_base():
    inner = pl.SmoothGrad(n_samples=4, noise_level=0.05)
    a = pl.SmoothGrad(base=inner, n_samples=500)(CUBIC, X, target=0)
    # Both noises add: the inner one is a fraction of the noisy copy's range, so its sigma is only about 0.1.
    assert within(a.scores, 3 * (X**2 + SIGMA**2 + 0.1**2), a.standard_error + 0.06)
    assert a.recipe.explainer["settings"]["base"]["type"] == "SmoothGrad"


def test_the_inner_noise_differs_from_copy_to_copy():
    """With no outer noise the copies are equal; only their keys, H(key, i), can make the inner maps differ."""
    inner = pl.SmoothGrad(n_samples=2, noise_level=0.15)
    a = pl.SmoothGrad(base=inner, n_samples=10, noise_level=0.0)(CUBIC, X, target=0)
    assert float(a.standard_error.min()) > 0


def test_captum_is_the_mean_of_absolute_gradients_with_absolute_sigma_one():
    explain = pl.SmoothGrad.captum(seed=1)
    copies = [X[0] + torch.from_numpy(normal(Key.of(X[0]).stream(1), i, (8,))).double() for i in range(5)]
    model = pl.TorchModel(Power(2, 1.0))
    expected = torch.stack([(2 * copy).abs() for copy in copies]).mean(0)
    torch.testing.assert_close(explain(model, X, target=0).scores[0], expected, rtol=1e-12, atol=0)


def test_pair_is_the_mean_of_squared_gradients_over_25_copies():
    explain = pl.SmoothGrad.pair(seed=1)
    copies = [X[0] + SIGMA * torch.from_numpy(normal(Key.of(X[0]).stream(1), i, (8,))).double() for i in range(25)]
    expected = torch.stack([(3 * copy**2) ** 2 for copy in copies]).mean(0)
    torch.testing.assert_close(explain(CUBIC, X, target=0).scores[0], expected, rtol=1e-12, atol=0)


def test_zennit_takes_its_twentieth_copy_without_noise():
    explain = pl.SmoothGrad.zennit(seed=1)
    copies = [X[0] + 0.2 * torch.from_numpy(normal(Key.of(X[0]).stream(1), i, (8,))).double() for i in range(19)]
    maps = torch.stack([3 * copy**2 for copy in [*copies, X[0]]])
    a = explain(CUBIC, X, target=0)
    torch.testing.assert_close(a.scores[0], maps.mean(0), rtol=1e-12, atol=0)
    error = maps[:19].std(0) / math.sqrt(19) * 19 / 20
    torch.testing.assert_close(a.standard_error[0], error, rtol=1e-10, atol=0)
    assert a.samples_used == 20


def test_zennit_with_one_sample_is_the_gradient():
    explain = pl.SmoothGrad(n_samples=1, noise_level=pl.NoiseLevel(0.1, clean_copy=True))
    assert torch.equal(explain(CUBIC, X, target=0).scores, pl.SimpleGradient()(CUBIC, X, target=0).scores)


def test_a_clean_copy_leaves_no_batches_to_flip_the_signs_of():
    assert pl.SmoothGrad.zennit()(CUBIC, X, target=0).estimate.batch_means is None


def test_cost_is_that_of_the_base_times_the_samples():
    assert pl.SmoothGrad(n_samples=7).card.cost == pl.Cost(7, 7)
    a = pl.SmoothGrad(n_samples=7)(pl.TorchModel(Power(3, 1.0)), X, target=0)
    assert a.cost == pl.Cost(7, 7) + pl.Cost(1)  # the clean prediction


def test_the_card_of_a_wrapper_is_that_of_its_base():
    card = pl.SmoothGrad(base=pl.Squared()).card
    assert card.access is pl.Access.WHITE_BOX
    assert card.name == "smooth-grad-of-squared-simple-gradient"


@pytest.mark.doors
@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"noise_level": 25}, r"between 0 and 1. Got 25. For an absolute sigma write NoiseLevel.absolute\(25\)"),
        ({"noise_level": -0.1}, "between 0 and 1"),
        ({"noise_level": math.nan}, "between 0 and 1"),
        ({"n_samples": 0}, r"`n_samples` is a whole number, 1 or more, or pl.Until\(error=0.5, at_most=2000\). Got 0"),
        ({"n_samples": 2.5}, "Got 2.5"),
        ({"seed": -1}, "`seed` is a whole number from 0"),
        ({"base": pl.SimpleGradient}, "with its parentheses"),
    ],
)
def test_wrong_settings_say_what_to_write(settings, words):
    with pytest.raises(pl.ArgumentError, match=words):
        pl.SmoothGrad(**settings)


@pytest.mark.doors
def test_a_noise_level_is_a_fraction_or_absolute_but_not_both():
    with pytest.raises(pl.ArgumentError, match="a fraction of the input's range, or"):
        pl.NoiseLevel(0.1, sigma=1.0)


def test_explainers_are_values():
    assert pl.SmoothGrad(n_samples=5) == pl.SmoothGrad(n_samples=5) != pl.SmoothGrad(n_samples=6)
    assert len({pl.SmoothGrad(), pl.SmoothGrad()}) == 1
    assert "noise_level=0.15" in repr(pl.SmoothGrad())

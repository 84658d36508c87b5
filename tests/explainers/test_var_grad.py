import pytest
import torch
from tests.oracles import Linear, Power, Quadratic, uniform

import pellucid as pl

X = torch.linspace(-1, 1, 8, dtype=torch.float64)[None]
S = 0.3


def test_cubic_network_gives_the_variance_of_its_gradient():
    """Var[3 (x + e)^2] = 36 x^2 s^2 + 18 s^4."""
    a = pl.VarGrad(n_samples=4000)(pl.TorchModel(Power(3, 1.0)), X, target=0)
    expected = 36 * X**2 * S**2 + 18 * S**4
    assert ((a.scores - expected).abs() <= 5 * a.standard_error).all()
    assert (a.standard_error < 0.2 * expected).all()


def test_its_unit_is_squared():
    assert pl.VarGrad().card.unit == pl.SmoothGradSquared().card.unit == "(score per unit of input)^2"
    assert pl.SmoothGrad().card.unit == "score per unit of input"


def test_linear_network_has_none():
    a = pl.VarGrad(n_samples=5)(pl.TorchModel(Linear(uniform(2, 8, dtype=torch.float64))), X)
    assert float(a.scores.max()) < 1e-28


def test_it_is_unbiased_with_two_samples():
    """Var[c e] = c^2 s^2; dividing by n instead of n - 1 would halve it."""
    model = pl.TorchModel(Quadratic(torch.full((8,), 2.0, dtype=torch.float64)))
    x = torch.linspace(-1, 1, 8, dtype=torch.float64)[None]
    maps = [pl.VarGrad(n_samples=2, seed=seed)(model, x, target=1).scores for seed in range(300)]
    mean = torch.stack(maps).mean()
    # The variance of one estimate is 2 (c s)^4 / (n - 1), over 2400 independent ones.
    assert abs(float(mean) - 4 * S**2) < 5 * (2 * (2 * S) ** 4 / 2400) ** 0.5


@pytest.mark.doors
def test_one_sample_has_no_variance():
    with pytest.raises(pl.ArgumentError, match="`n_samples` is a whole number, 2 or more"):
        pl.VarGrad(n_samples=1)


@pytest.mark.doors
def test_a_clean_copy_is_refused():
    with pytest.raises(pl.ArgumentError, match="a clean copy among them is another quantity"):
        pl.VarGrad(noise_level=pl.NoiseLevel(0.1, clean_copy=True))

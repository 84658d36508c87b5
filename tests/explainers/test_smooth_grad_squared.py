import torch
from tests.oracles import Power

import pellucid as pl

X = torch.linspace(-1, 1, 8, dtype=torch.float64)[None]
S = 0.3


def test_cubic_network_gives_the_second_moment_of_its_gradient():
    """E[9 (x + e)^4] = 9 (x^4 + 6 x^2 s^2 + 3 s^4)."""
    a = pl.SmoothGradSquared(n_samples=4000)(pl.TorchModel(Power(3, 1.0)), X, target=0)
    expected = 9 * (X**4 + 6 * X**2 * S**2 + 3 * S**4)
    assert ((a.scores - expected).abs() <= 5 * a.standard_error).all()
    assert (a.standard_error < 0.2 * expected).all()


def test_it_is_not_the_square_of_the_mean():
    model = pl.TorchModel(Power(3, 1.0))
    squared = pl.SmoothGradSquared(n_samples=50)(model, X, target=0).scores
    assert (squared > pl.SmoothGrad(n_samples=50)(model, X, target=0).scores ** 2).all()


def test_it_equals_smooth_grad_over_the_squared_base():
    model = pl.TorchModel(Power(3, 1.0))
    other = pl.SmoothGrad(base=pl.Squared(), n_samples=9)(model, X, target=0)
    assert torch.equal(pl.SmoothGradSquared(n_samples=9)(model, X, target=0).scores, other.scores)

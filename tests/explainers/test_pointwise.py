import torch
from tests.oracles import Power, uniform

import pellucid as pl

X = uniform(2, 5, dtype=torch.float64) - 0.5
MODEL = pl.TorchModel(Power(2, 1.0))


def test_absolute_and_squared_are_elementwise_functions_of_the_base():
    torch.testing.assert_close(pl.Absolute()(MODEL, X, target=0).scores, (2 * X).abs(), rtol=1e-12, atol=0)
    torch.testing.assert_close(pl.Squared()(MODEL, X, target=0).scores, 4 * X**2, rtol=1e-12, atol=0)


def test_their_card_claims_no_error_even_over_a_sampled_base():
    a = pl.Absolute(base=pl.SmoothGrad(n_samples=3))(MODEL, X, target=0)
    assert a.standard_error is None
    assert not pl.Absolute(base=pl.SmoothGrad()).card.sampled

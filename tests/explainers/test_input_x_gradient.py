import pytest
import torch
from tests.explainers.paths import Several, gradient, near, seeded, several
from tests.oracles import Linear, Power, uniform
from torch import nn

import pellucid as pl

X = torch.linspace(-1, 1, 8, dtype=torch.float64)[None]


def test_of_a_linear_network_it_is_what_each_feature_adds():
    weight, x = uniform(2, 8, dtype=torch.float64), torch.cat([X, 3 - X])
    a = pl.InputXGradient()(pl.TorchModel(Linear(weight, torch.tensor([5.0, 7.0]))), x, target=[1, 0])
    assert torch.equal(a.scores, x * weight[[1, 0]])


@pytest.mark.parametrize("p", [1, 2, 3, 5])
def test_of_a_power_it_is_the_exponent_times_the_power(p):
    a = pl.InputXGradient()(pl.TorchModel(Power(p, 1.0, 2.0)), X, target=1)
    torch.testing.assert_close(a.scores, 2 * p * X**p, rtol=1e-12, atol=0)


def test_without_biases_a_network_of_relu_is_divided_among_its_inputs():
    """Euler: such a network is homogeneous of degree one."""
    net = seeded(lambda: nn.Sequential(nn.Linear(8, 9, bias=False), nn.ReLU(), nn.Linear(9, 2, bias=False)))
    a = pl.InputXGradient()(pl.TorchModel(net), X, target=1)
    torch.testing.assert_close(a.scores.sum(), net(X)[0, 1].detach(), rtol=1e-12, atol=0)


def test_what_is_zero_in_the_models_units_gets_zero():
    x = X.clone()
    x[0, 3] = 0
    a = pl.InputXGradient()(pl.TorchModel(Linear(torch.ones(2, 8, dtype=torch.float64))), x, target=0)
    assert (a.scores == 0).tolist() == [[i == 3 for i in range(8)]]


def test_of_several_inputs_what_is_held_gets_nothing():
    net, parts = seeded(Several), several()
    a = pl.InputXGradient()(pl.TorchModel(net), parts, target=1)
    assert list(a.parts) == ["vector", "picture"]
    assert float(a.scores[:, -2:].abs().max()) == 0
    expected = gradient(lambda v: net(v, parts["picture"], parts["group"])[:, 1], parts["vector"]) * parts["vector"]
    assert near(a.parts["vector"], expected)


def test_half_precision_gets_digits_for_its_products():
    net = seeded(lambda: nn.Linear(4, 2)).half()
    a = pl.InputXGradient()(pl.TorchModel(net), uniform(1, 4).half(), target=0)
    assert a.scores.dtype == torch.float32

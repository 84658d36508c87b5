import pytest
import torch
from tests.oracles import Linear, Power, conv_net, uniform

import pellucid as pl


def test_linear_network_gives_its_weights():
    weight = uniform(2, 6)
    a = pl.SimpleGradient()(pl.TorchModel(Linear(weight)), uniform(1, 2, 3, seed=1), target=1)
    assert torch.equal(a.scores, weight[1].reshape(1, 2, 3))


def test_cubic_network_gives_three_x_squared_with_its_sign():
    x = uniform(4, 5, dtype=torch.float64) - 0.5
    a = pl.SimpleGradient()(pl.TorchModel(Power(3, 1.0, -2.0)), x, target=1)
    torch.testing.assert_close(a.scores, -6 * x**2, rtol=1e-12, atol=0)


def test_each_input_gets_the_gradient_of_its_own_target():
    weight = uniform(3, 4)
    a = pl.SimpleGradient()(pl.TorchModel(Linear(weight)), uniform(3, 4, seed=1), target=[2, 0, 2])
    assert torch.equal(a.scores, weight[[2, 0, 2]])


def test_no_target_means_the_top_class_of_each_input():
    x = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    a = pl.SimpleGradient()(pl.TorchModel(Linear(torch.tensor([[1.0, 0.0], [0.0, 2.0]]))), x)
    assert [d.target for d in a.decisions] == [pl.ClassScore(0), pl.ClassScore(1)]
    assert a.scores.tolist() == [[1.0, 0.0], [0.0, 2.0]]


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        (pl.Margin(1, 0), [-1.0, 1.0]),
        (pl.Probability(1), [-0.25, 0.25]),  # p (1 - p) = 1/4 at logits (0, 0)
        (pl.LogProb(1), [-0.5, 0.5]),  # 1 - p = 1/2
    ],
)
def test_targets_have_their_own_gradients(target, expected):
    a = pl.SimpleGradient()(pl.TorchModel(Linear(torch.eye(2))), torch.zeros(1, 2), target)
    torch.testing.assert_close(a.scores, torch.tensor([expected]))


def test_gradient_of_a_convolutional_network_is_that_of_autograd():
    net, x = conv_net(dtype=torch.float64), uniform(2, 3, 9, 9, dtype=torch.float64)
    leaf = x.clone().requires_grad_()
    expected = torch.autograd.grad(net.eval()(leaf)[:, 2].sum(), leaf)[0]
    torch.testing.assert_close(pl.SimpleGradient()(pl.TorchModel(net), x, 2).scores, expected, rtol=1e-10, atol=1e-12)


def test_nothing_is_sampled():
    a = pl.SimpleGradient()(pl.TorchModel(Linear(torch.eye(2))), torch.zeros(1, 2))
    assert a.standard_error is None
    assert a.samples_used == 0

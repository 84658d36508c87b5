import pytest
import torch
from tests.oracles import uniform
from torch import nn

import pellucid as pl
from pellucid.core.depthwise import strides_in_single


def layer(*, stride: int = 2, groups: int = 8) -> nn.Conv2d:
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        return nn.Conv2d(8, 8, 3, stride=stride, padding=1, groups=groups).requires_grad_(False)


def run(net: nn.Module, x: torch.Tensor, *, autocast: bool = True) -> torch.Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        return net(x)


def test_a_strided_depthwise_convolution_computes_in_float32_and_gives_bfloat16():
    net, x = layer(), uniform(2, 8, 9, 9)
    exact = net(x)
    with strides_in_single(net.modules()):
        found = run(net, x)
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, exact.bfloat16())
    assert not torch.equal(run(net, x), exact.bfloat16()), "bfloat16 rounds the input too, so the two can be told apart"


def test_its_gradient_is_that_of_float32():
    net, leaf = layer(), uniform(2, 8, 9, 9).requires_grad_()
    [exact] = torch.autograd.grad(net(leaf).sum(), leaf)
    with strides_in_single(net.modules()):
        [found] = torch.autograd.grad(run(net, leaf).float().sum(), leaf)
    assert torch.equal(found, exact)


def test_without_autocast_it_is_as_it_was():
    net, x = layer().double(), uniform(2, 8, 9, 9).double()
    exact = net(x)
    with strides_in_single(net.modules()):
        assert torch.equal(run(net, x, autocast=False), exact)


@pytest.mark.parametrize("other", [layer(stride=1), layer(groups=1), layer(groups=4)])
def test_other_convolutions_stay_in_bfloat16(other):
    x = uniform(2, 8, 9, 9)
    with strides_in_single(other.modules()):
        assert "forward" not in vars(other)
        assert torch.equal(run(other, x), run(other, x))


def test_the_module_is_as_before_also_after_an_error():
    net = nn.Sequential(layer(), nn.Conv2d(8, 3, 1))

    def fail() -> None:
        with strides_in_single(net.modules()):
            assert "forward" in vars(net[0])
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert "forward" not in vars(net[0])


def test_a_forward_that_the_user_replaced_stays():
    net = layer()
    net.forward = lambda x: x + 1
    with strides_in_single(net.modules()):
        assert torch.equal(net(torch.zeros(1)), torch.ones(1))
    assert torch.equal(net(torch.zeros(1)), torch.ones(1))


def test_sampling_in_bfloat16_uses_it():
    net = nn.Sequential(layer(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    x = uniform(1, 8, 9, 9)
    found = pl.SmoothGrad(n_samples=4, noise_level=0.0)(pl.TorchModel(net, precision="bfloat16"), x, 0).scores
    [exact] = torch.autograd.grad(net(leaf := x.clone().requires_grad_())[:, 0].sum(), leaf)
    # The pool's gradient, one number everywhere, is rounded to 8 bits; the weights are not. Channel 0 alone counts.
    ratio = (found / exact)[:, 0]
    assert float(ratio.max() - ratio.min()) < 100 * torch.finfo(torch.float32).eps
    assert float((ratio - 1).abs().max()) < 2**-8

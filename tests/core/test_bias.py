"""The biases of a network and where they are added: together with the input they make up a piecewise linear output."""

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from tests.core.networks import Calling, classes, conv, fixed, plain, quiet, residual, same_state, state_of
from tests.oracles import uniform
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  # as networks write it

import pellucid as pl
from pellucid.core.bias import biases

X = uniform(3, 3, 8, 8, dtype=torch.float64) - 0.4
DIGITS = {"rtol": 0, "atol": 1e-12}
"""Sums of a few thousand numbers around one, in double precision."""


def parted(net: nn.Module, x: Any = X, **settings: Any) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
    """The outputs of class 1, the sum of all terms, and the terms of the biases."""
    with quiet(net, **settings) as model:
        found = model.bias_pass(model.place(x), classes(len(x), 1))
    own = (x * found.gradient).flatten(1).sum(1)
    return found.scores, own + sum(part.flatten(1).sum(1) for part in found.biases), found.biases


@fixed
def small(*, bias: bool = True, affine: bool = True) -> nn.Module:
    return nn.Sequential(conv(3, 4, bias=bias), nn.BatchNorm2d(4, affine=affine), nn.ReLU(inplace=True),
                         nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 3, bias=bias))  # fmt: skip


@fixed
def normed(norm: nn.Module) -> nn.Module:
    return nn.Sequential(conv(3, 4), norm, nn.ReLU(), nn.Flatten(), nn.Linear(256, 3))


@fixed
def transposed() -> nn.Module:
    return nn.Sequential(conv(3, 4, 2), nn.ReLU(), nn.ConvTranspose2d(4, 4, 2, 2), nn.ReLU(), nn.Flatten(),
                         nn.Linear(256, 3))  # fmt: skip


@fixed
def reused() -> nn.Module:
    """A convolution, a norm and a linear layer that each run twice."""

    def forward(net: Any, x: Tensor) -> Tensor:
        y = F.relu(net.norm(net.conv(x)))
        y = F.relu(net.norm(net.conv(y))).mean((2, 3))
        return net.linear(F.relu(net.linear(y)))

    return Calling(forward, conv=conv(3, 3), norm=nn.BatchNorm2d(3), linear=nn.Linear(3, 3))


@fixed
def shared_in_place() -> nn.Module:
    """Writes into what norms and convolutions give."""

    def forward(net: Any, x: Tensor) -> Tensor:
        x.mul_(2)
        y = net.conv(x)
        y += x
        return net.head(F.relu_(net.norm(F.relu_(y)).mul_(2)).mean((2, 3)))

    return Calling(forward, conv=conv(3, 3), norm=nn.BatchNorm2d(3), head=nn.Linear(3, 3))


@fixed
def own_bias() -> nn.Module:
    """A network with a bias of its own at the end."""

    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head, self.bias = nn.Linear(192, 3, bias=False), nn.Parameter(torch.arange(3.0))

        def forward(self, x: Tensor) -> Tensor:
            return self.head(x.flatten(1)) + self.bias

    return Own()


NETS = {
    "convolution with bias, norm": small,
    "no bias but in the norm": lambda: small(bias=False),
    "a norm that shifts only by its mean": lambda: small(affine=False),
    "several": plain,
    "shortcuts": residual,
    "modules that run again": reused,
    "written in place": shared_in_place,
    "transposed": transposed,
    "a bias of its own": own_bias,
    "instance norm with statistics": lambda: normed(nn.InstanceNorm2d(4, affine=True, track_running_stats=True)),
    "synchronised norm": lambda: normed(nn.SyncBatchNorm(4)),
}


@pytest.mark.parametrize("make", NETS.values(), ids=NETS)
def test_input_and_biases_make_up_the_output(make):
    scores, total, terms = parted(make())
    torch.testing.assert_close(scores, make()(X.clone())[:, 1].detach(), **DIGITS)
    torch.testing.assert_close(total, scores, **DIGITS)
    assert any(bool(term.any()) for term in terms)


@pytest.mark.parametrize("make", [small, plain, residual, lambda: small(affine=False)])
def test_they_are_the_same_ones_where_norms_are_folded(make):
    _, _, expected = parted(make())
    with quiet(make()) as model, model.quick(X):
        assert model.folded_bytes
        found = model.bias_pass(X, classes(3, 1))
    assert len(found.biases) == len(expected)
    for one, other in zip(found.biases, expected, strict=True):
        torch.testing.assert_close(one, other, **DIGITS)


def test_each_term_is_the_bias_times_the_gradient_where_it_is_added():
    net = small()
    found = parted(net)[2]
    a = net[0](X).detach().requires_grad_()
    b = net[1](a)
    c = net[2:](b.clone())
    by_a, by_b = torch.autograd.grad(c[:, 1].sum(), [a, b])
    norm = net[1]
    gain = norm.weight / (norm.running_var + norm.eps).sqrt()
    shift = norm.bias - gain * norm.running_mean
    expected = [
        net[0].bias.view(1, 4, 1, 1) * by_a,
        shift.view(1, 4, 1, 1) * by_b,
        net[5].bias * torch.tensor([0.0, 1.0, 0.0]).expand(3, 3),
    ]
    assert len(found) == 3
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other.detach(), **DIGITS)


@pytest.mark.parametrize(
    "norm", [nn.LayerNorm((4, 8, 8)), nn.GroupNorm(2, 4), nn.InstanceNorm2d(4, affine=True),
             nn.BatchNorm2d(4, track_running_stats=False)],
    ids=lambda norm: type(norm).__name__,
)  # fmt: skip
def test_of_a_norm_that_takes_its_statistics_from_the_input_the_bias_alone_is_added(norm):
    net = normed(norm)
    with torch.no_grad():
        net[1].bias.copy_(uniform(*net[1].bias.shape))
    term = parted(net)[2][1]
    b = net[1](net[0](X)).detach().requires_grad_()
    [by] = torch.autograd.grad(net[2:](b)[:, 1].sum(), b)
    shape = net[1].bias.shape if isinstance(norm, nn.LayerNorm) else (4, 1, 1)
    torch.testing.assert_close(term, (net[1].bias.view(shape) * by).detach(), **DIGITS)


def test_in_training_mode_a_norm_takes_its_statistics_from_the_input():
    net = small().train()
    _, _, terms = parted(net, mode="as-is")
    with torch.no_grad():
        net[1].running_mean += 1
    for one, other in zip(parted(net, mode="as-is")[2], terms, strict=True):
        torch.testing.assert_close(one, other, **DIGITS)


def test_what_the_target_does_not_depend_on_has_terms_of_zero():
    net = Calling(lambda net, x: (net.a(x), net.b(x))[0], a=nn.Linear(3, 2), b=nn.Linear(3, 2)).double()
    x = uniform(2, 3, dtype=torch.float64)
    scores, total, (first, second) = parted(net, x)
    assert not bool(second.any())
    assert torch.equal(first, net.a.bias.detach() * torch.tensor([0.0, 1.0]).expand(2, 2))
    torch.testing.assert_close(total, scores, **DIGITS)


def test_a_constant_network_has_no_terms():
    net = Calling(lambda net, x: net.a(x).detach(), a=nn.Linear(3, 2)).double()
    scores, total, terms = parted(net, uniform(2, 3, dtype=torch.float64))
    assert terms == ()
    assert not bool(total.any())
    assert bool(scores.any())


def test_a_strangers_bias_of_another_shape_is_left_alone():
    odd = Calling(lambda net, x: x * net.bias.sum())
    odd.bias = nn.Parameter(torch.ones(5))
    net = Calling(lambda net, x: net.head(net.odd(x.flatten(1))), odd=odd, head=nn.Linear(192, 3)).double()
    scores, total, terms = parted(net)
    assert len(terms) == 1
    torch.testing.assert_close(total, scores, **DIGITS)


def test_in_bfloat16_biases_keep_their_digits():
    with torch.autocast("cpu", dtype=torch.bfloat16), biases(net := small().float()) as added:
        net(X.float().requires_grad_())
    assert added[0].at.dtype == torch.bfloat16
    assert torch.equal(added[0].bias.flatten(), net[0].bias.detach())


@pytest.mark.parametrize("wrap", [lambda net: torch.compile(net, backend="eager"), nn.DataParallel],
                         ids=["compiled", "parallel"])  # fmt: skip
def test_compiled_and_parallel_networks_have_the_terms_of_the_network_inside(wrap):
    net = wrap(small())
    net(X)
    for one, other in zip(parted(net)[2], parted(small())[2], strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("error", [False, True])
def test_the_network_is_afterwards_bit_by_bit_as_before(error):
    def break_down(module: nn.Module, args: Any) -> None:
        raise RuntimeError("the network broke")

    net = small().train()
    if error:
        net[4].register_forward_pre_hook(break_down)
    before = state_of(net)
    with pytest.raises(pl.ModelError, match="the network broke") if error else nullcontext():
        parted(net)
    assert same_state(state_of(net), before)


class TurnedNorm(nn.LayerNorm):
    """Over the channels of a picture, as in ConvNeXt."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


@pytest.mark.parametrize(("channels", "wide", "noted"), [(4, 8, 1), (6, 6, 0)])
def test_a_norm_of_ones_own_that_turns_its_axes_is_read_by_its_shape_or_left_out(channels, wide, noted):
    net = nn.Sequential(TurnedNorm(channels), nn.Flatten(), nn.Linear(channels * 8 * wide, 2, bias=False))
    with torch.no_grad():
        net[0].bias.copy_(uniform(channels))
    x = uniform(1, channels, 8, wide)
    with biases(net) as added:
        net(x.requires_grad_())
    assert len(added) == noted
    assert all(one.bias.shape == (1, channels, 1, 1) for one in added)

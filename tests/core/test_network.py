import pytest
import torch
from tests.oracles import Linear, conv_net, uniform
from torch import nn

import pellucid as pl
from pellucid.core.network import Network
from pellucid.core.prediction import OutputKind
from pellucid.core.target import Targets


def network(net: nn.Module, *, bfloat16: bool = False) -> Network:
    return Network(net.eval().requires_grad_(False), torch.device("cpu"), "net", None, bfloat16, set())


def targets(rows: int) -> Targets:
    return Targets((pl.ClassScore(1),) * rows, OutputKind.LOGITS)


def test_the_gradient_of_a_linear_network_is_its_weight():
    one = network(Linear(uniform(2, 3)))
    assert torch.equal(one.gradient(uniform(4, 3), targets(4)), uniform(2, 3)[1].expand(4, 3))


def test_two_backward_passes_of_one_graph_are_the_same():
    one = network(conv_net())
    leaf, score = one.scored(uniform(2, 3, 9, 9), targets(2))
    first, second = one.backward(leaf, score, keep=True), one.backward(leaf, score)
    assert torch.equal(first, second)
    with pytest.raises(pl.ModelError, match="second time"):
        one.backward(leaf, score)


def test_the_gradient_mode_of_the_caller_counts_only_where_it_is_asked_for():
    one, x = network(conv_net()), uniform(2, 3, 9, 9)
    with torch.no_grad():
        assert one.scored(x, targets(2))[1].requires_grad
        assert not one.outputs_as_asked(x).requires_grad
    assert one.outputs_as_asked(x).requires_grad
    assert not one.outputs(x).requires_grad


def test_autocast_is_on_within_the_network_only():
    seen = []

    class Seeing(Linear):
        def forward(self, x):
            seen.append(torch.is_autocast_enabled("cpu"))
            return super().forward(x)

    for half in (False, True):
        outputs = network(Seeing(uniform(2, 3)), bfloat16=half).outputs(uniform(4, 3))
        assert outputs.dtype == torch.float32
    assert seen == [False, True]
    assert not torch.is_autocast_enabled("cpu")


def test_plain_and_factored_gradients_come_from_one_forward_pass():
    passes = []
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 2, 3), nn.Tanh(), nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )  # fmt: skip
    net.register_forward_pre_hook(lambda module, args: passes.append(len(args[0])))
    one, x = network(net), uniform(4, 3, 16, 16)
    found = one.factored_gradient(x, targets(4), 2, 1, plain=True)
    assert passes == [4]
    assert torch.equal(found.plain, one.gradient(x, targets(4)))
    assert not torch.equal(found.factored, found.plain)
    assert one.factored_gradient(x, targets(4), 2, 1, plain=False).plain is None

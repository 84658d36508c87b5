"""What wraps a network does not change its maps: compiling it or a part of it, and DataParallel."""

from collections.abc import Callable
from functools import cache

import pytest
import torch
from tests.contract.test_methods import LOCAL, attends
from tests.oracles import attention_net, conv_net, uniform
from torch import nn

import pellucid as pl

X = uniform(2, 3, 9, 9, seed=4)

# Compiling a module by itself, torch looks at `.grad` of what is handed to it.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")


class Net(nn.Module):
    """Torch does not compile a Sequential in place, but what is written by others."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x) / 2


class Spread(nn.DataParallel):
    """Told that it is spread over two devices."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__(net)
        self.device_ids = [0, 1]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.module(x)


def plain(net: nn.Module) -> nn.Module:
    return net


def compiled(net: nn.Module) -> nn.Module:
    return torch.compile(net, backend="eager")


def compiled_in_place(net: nn.Module) -> nn.Module:
    net.compile(backend="eager")
    return net


def compiled_in_part(net: nn.Module) -> nn.Module:
    net.body[0] = torch.compile(net.body[0], backend="eager")
    return net


def parallel(net: nn.Module) -> nn.Module:
    return nn.DataParallel(net)


def parallel_and_compiled(net: nn.Module) -> nn.Module:
    return nn.DataParallel(compiled(net))


WAYS = (compiled, compiled_in_place, compiled_in_part, parallel, parallel_and_compiled)
METHODS = [pytest.param(e, id=e.card.name) for e in LOCAL]
LOOKS_INSIDE = pl.Needs.MODULES | pl.Needs.ACTIVATIONS | pl.Needs.OPERATIONS

ways = pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)


@cache
def model(way: Callable[[nn.Module], nn.Module], attention: bool = False) -> pl.TorchModel:
    return pl.TorchModel(way(Net(attention_net() if attention else conv_net(pooled=1))))


@pytest.fixture(scope="module", autouse=True)
def compiler():
    """Compiles as often as it is asked to: by itself, torch gives up at the ninth kind of call."""
    torch._dynamo.reset()
    with torch._dynamo.config.patch(recompile_limit=10_000, accumulated_recompile_limit=10_000):
        yield
    model.cache_clear()
    torch._dynamo.reset()


@ways
@pytest.mark.parametrize("explain", METHODS)
def test_a_wrapped_network_has_the_maps_of_the_plain_one(explain, way):
    expected, found = (explain(model(one, attends(explain)), X) for one in (plain, way))
    # The same operations on the same numbers; only the norms of a compiled network may stay unfolded.
    assert expected.scores.any() or explain.card.name == "smallest-change"  # of which this network has none
    assert float((found.scores - expected.scores).abs().max()) <= 1e-5 * float(expected.scores.abs().max())
    assert found.recipe.notes.get("layer") == expected.recipe.notes.get("layer")


@pytest.mark.parametrize("way", [compiled, compiled_in_place], ids=lambda way: way.__name__)
def test_the_network_runs_compiled_where_nothing_inside_is_asked_for(way):
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    pl.SimpleGradient()(pl.TorchModel(way(Net(conv_net()))), X)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0


@pytest.mark.doors
@pytest.mark.parametrize("explain", METHODS)
def test_copies_on_several_devices_are_refused_by_methods_that_look_inside_and_by_no_others(explain):
    if explain.card.needs & LOOKS_INSIDE:
        with pytest.raises(pl.LayerError, match="Pass the network inside and its devices"):
            explain(model(Spread), X)
    else:
        assert torch.equal(explain(model(Spread), X).scores, explain(model(plain), X).scores)


@ways
@pytest.mark.parametrize("name", ["body.3", "module.body.3", "_orig_mod.body.3"])
def test_a_layer_has_its_name_within_the_wrapper_or_with_it(way, name):
    expected = pl.GradCAM(layer="body.3")(model(plain), X).scores
    found = pl.GradCAM(layer=name)(model(way), X).scores
    assert float((found - expected).abs().max()) <= 1e-5 * float(expected.abs().max())

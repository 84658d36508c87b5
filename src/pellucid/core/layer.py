"""Layers of a network: finding them by name, taking what they give in a pass, and the layer that maps are made of.

A layer is a module, or one of its runs if it runs several times in a pass: "relu:3" is the third. What it gives is its
activation; of a tuple, the first tensor. Used by network.py and tail.py.
"""

import copy
import difflib
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pellucid.core.cuts import Cut, at_once, is_pool, separators
from pellucid.core.folding import unfolded
from pellucid.core.grid import Grid, grid_of
from pellucid.errors import LayerError

__all__ = ["Ran", "Taps", "as_written", "find", "first_tensor", "last_spatial", "modules_of", "tapped", "with_first",
           "witnessed"]  # fmt: skip

_STILL_OUTPUTS = ("LogSoftmax", "Sigmoid", "Softmax", "ToCopy", "Upsample")
"""Operations on a segmentation's outputs, by the names of their gradients."""

_LOOKED_AT = 64
"""Layers from the end that may be the last spatial one."""


class Ran(NamedTuple):
    """One run of a module: its name and number, the run's place in the graph and the shape of what it gave."""

    name: str
    run: int
    cut: Cut | None
    shape: tuple[int, ...]


class Taps:
    """What named layers gave in the passes within `tapped`."""

    def __init__(self, names: Sequence[str]) -> None:
        self.runs: dict[str, list[Tensor | None]] = {name: [] for name in names}

    def of(self, name: str, rows: int) -> Tensor:
        """The activation of a layer, (rows, ...).

        Raises:
            LayerError: it did not run, or several times, or gave no tensor with a row for each input.
        """
        module, wanted = _split(name)
        runs = self.runs[name]
        if not runs:
            raise LayerError(
                f"The layer {name!r} did not run for these inputs. Expected a module that the forward pass calls: name "
                "one that is not skipped, and whose parents are not scripted."
            )
        if wanted is None and len(runs) > 1:
            raise LayerError(
                f"The module {module!r} runs {len(runs)} times in one pass. Expected one run: write '{module}:1' to "
                f"'{module}:{len(runs)}' (its last), or the block that holds it."
            )
        if wanted is not None and wanted > len(runs):
            raise LayerError(f"The module {module!r} runs {len(runs)} times in one pass, but {name!r} was asked for.")
        tap = runs[(wanted or 1) - 1]
        if tap is None or tap.ndim < 2 or len(tap) != rows:
            got = "no tensor" if tap is None else f"a tensor {tuple(tap.shape)}"
            raise LayerError(f"Expected the layer {name!r} to give a row for each of {rows} inputs, but it gave {got}.")
        return tap


def modules_of(net: nn.Module) -> dict[str, nn.Module]:
    """The modules of a network by name, those of what compiling, DataParallel or a tail wrapped."""
    inner = _inside(net)
    return dict(net.named_modules(remove_duplicate=False)) if inner is None else modules_of(inner)


def _inside(net: nn.Module) -> nn.Module | None:
    """What is wrapped, if this is a wrapper."""
    if isinstance(net, nn.DataParallel | nn.parallel.DistributedDataParallel):
        inner: object = net.module
    else:
        inner = getattr(net, "_orig_mod", None)  # of torch.compile
    if inner is None:
        inner = vars(net).get("inside")  # of tail.py; a network's own module of this name is none of its variables
    return inner if isinstance(inner, nn.Module) else None


@contextmanager
def as_written(net: nn.Module) -> Iterator[None]:
    """Compiled networks run as they are written within: hooks would not be called, or would be compiled anew.

    Raises:
        LayerError: a network that is spread over several devices, whose layers run in copies.
    """
    wrapper: nn.Module | None = net
    while wrapper is not None:
        if isinstance(wrapper, nn.DataParallel) and len(wrapper.device_ids) > 1:
            raise LayerError(
                "The layers of a DataParallel on several devices run in copies, which cannot be seen. Pass the network "
                "inside and its devices, TorchModel(net.module, device=(...))."
            )
        wrapper = _inside(wrapper)
    compiled = "torch._dynamo" in sys.modules
    with torch.compiler.set_stance("force_eager") if compiled else nullcontext():
        yield


def _split(name: str) -> tuple[str, int | None]:
    module, colon, run = name.rpartition(":")
    return (module, int(run)) if colon and run.isdecimal() and int(run) > 0 else (name, None)


def find(known: Mapping[str, nn.Module], name: str) -> nn.Module:
    """The module of a layer's name, of all by name.

    Raises:
        LayerError: there is none, and the near names are listed; or it is scripted.
    """
    module, _ = _split(name)
    for prefix in ("", "module.", "_orig_mod."):
        found = known.get(module.removeprefix(prefix)) if module.startswith(prefix) else None
        if isinstance(found, torch.jit.ScriptModule):
            raise LayerError(
                f"The layer {module!r} is scripted, and what scripted modules give is not seen. Name a module that is "
                "none, or pass the network as it was before torch.jit."
            )
        if found is not None:
            return found
    names = [n for n in known if n]
    near = difflib.get_close_matches(module, names, n=4, cutoff=0.4) or names[-4:]
    hint = f"Did you mean {' or '.join(map(repr, near))}?" if near else "It has no modules inside."
    raise LayerError(f"The network has no layer {module!r}. {hint}")


@contextmanager
def tapped(net: nn.Module, names: Sequence[str], *, leaves: bool = False) -> Iterator[Taps]:
    """Within, what these layers give is kept. The network goes on with a copy, since it may write into what it gets.

    With `leaves`, an activation that does not depend on anything differentiable becomes a leaf of the graph, so that
    what lies before it needs none.
    """
    taps = Taps(names)
    with ExitStack() as stack:
        stack.enter_context(as_written(net))
        known = modules_of(net)  # each walk through a network takes a quarter of a millisecond
        modules = {name: find(known, name) for name in names}
        for module in modules.values():  # what it gives as written, where a norm outside is folded into it
            own = set(module.modules())
            stack.enter_context(unfolded(set(known.values()) - own, own))
        for name, module in modules.items():

            def tap(module: nn.Module, args: Any, output: Any, name: str = name) -> Any:
                runs, (_, wanted) = taps.runs[name], _split(name)
                given = first_tensor(output)
                if given is None or (wanted is not None and wanted != len(runs) + 1):
                    runs.append(None)
                    return output
                if leaves and torch.is_grad_enabled() and given.is_floating_point() and not given.requires_grad:
                    # What was written in place may be taken from where it stands.
                    given = (given if any(given is arg for arg in args) else given.detach()).requires_grad_()
                runs.append(given)
                return with_first(output, given.clone())

            stack.callback(module.register_forward_hook(tap).remove)
        yield taps


def first_tensor(output: Any) -> Tensor | None:
    """The activation in what a module returned: the first tensor of a tuple or dict."""
    if isinstance(output, Mapping):
        return first_tensor(next(iter(output.values()), None))
    if isinstance(output, list | tuple):
        return first_tensor(output[0]) if output else None
    return output if isinstance(output, Tensor) else None


def with_first(output: Any, tensor: Tensor) -> Any:
    """The same with another activation."""
    if isinstance(output, Mapping):
        changed: Any = copy.copy(output)
        name = next(iter(output))
        changed[name] = with_first(output[name], tensor)
        return changed
    if isinstance(output, list | tuple):
        parts = [with_first(output[0], tensor), *output[1:]]
        return type(output)(*parts) if hasattr(output, "_fields") else type(output)(parts)
    return tensor


@contextmanager
def witnessed(net: nn.Module) -> Iterator[list[Ran]]:
    """Within, each run of each module is noted as it ends."""
    order: list[Ran] = []
    counts: dict[nn.Module, int] = {}
    with ExitStack() as stack:
        stack.enter_context(as_written(net))
        known: dict[nn.Module, str] = {}
        for name, module in modules_of(net).items():
            known.setdefault(module, name)
        stack.enter_context(unfolded(set(known)))

        def note(module: nn.Module, args: Any, output: Any) -> None:
            counts[module] = counts.get(module, 0) + 1
            given = first_tensor(output)
            # At once: what writes in place puts itself where the module stands.
            cut = None if given is None else at_once(given)
            order.append(Ran(known[module], counts[module], cut, () if given is None else tuple(given.shape)))

        for module in known:
            if not isinstance(module, torch.jit.ScriptModule):
                stack.callback(module.register_forward_hook(note).remove)
        yield order


def last_spatial(
    order: Sequence[Ran], outputs: Sequence[Tensor], features: tuple[int, ...], leaf: Tensor, *, own: bool = False
) -> str:
    """The last layer with a grid of cells, before pooling, on which the outputs depend at its cells.

    One that every path from the input to the outputs passes, if there is one; not the outputs themselves, unless their
    `own` layer will do. The name is that of the outermost module which gives this activation.

    Raises:
        LayerError: no layer gives such a map.
    """
    ends = set().union(*map(_of_outputs, outputs))
    depends = [ran for ran in order if ran.name and ran.cut is not None and (own or ran.cut.node not in ends)]
    spatial = [ran for ran in depends if grid_of(ran.shape, features) is not None]
    flat = torch.cat([each.flatten(1) for each in outputs], 1)
    score = (flat * torch.linspace(1, 2, flat.shape[1], dtype=flat.dtype, device=flat.device)).sum()
    told = _reached(spatial[-_LOOKED_AT:], score, leaf, features) if spatial and score.requires_grad else []
    passed = set(separators(score)) if told else set()
    for among in ([ran for ran in told if ran.cut is not None and ran.cut.node in passed], told):
        plain = [ran for ran in among if ran.cut is not None and not is_pool(ran.cut.node)] or among
        if plain:
            same = [ran for ran in depends if ran.cut == plain[-1].cut]
            best = min(same, key=lambda ran: ran.name.count("."))
            several = sum(ran.name == best.name for ran in order) > 1
            return f"{best.name}:{best.run}" if several else best.name
    raise LayerError(
        f"Expected a layer whose activation is a grid of cells, such as (B, K, h, w), for inputs {features}, but this "
        "network has none that the score depends on. Name one, layer=..., or take a method for inputs without a grid, "
        "such as IntegratedGradients()."
    )


def _of_outputs(outputs: Tensor) -> set[Any]:
    """What gave the outputs, also before they were squashed, enlarged or cast."""
    node: Any = outputs.grad_fn
    found = {node}
    while node is not None and str(node.name()).startswith(_STILL_OUTPUTS):
        node = node.next_functions[0][0]
        found.add(node)
    return found


def _reached(runs: Sequence[Ran], score: Tensor, leaf: Tensor, features: tuple[int, ...]) -> list[Ran]:
    """Those at whose cells a gradient arrives: at a class token alone, there is nothing to draw."""
    found: set[int] = set()
    with ExitStack() as stack:
        for i, ran in enumerate(runs):
            grid = grid_of(ran.shape, features)
            if ran.cut is None or grid is None:
                continue

            def keep(gradients: tuple[Tensor | None, ...], i: int = i, cut: Cut = ran.cut, grid: Grid = grid) -> None:
                gradient = gradients[cut.output]
                if gradient is not None and bool(grid.maps(gradient).any()):
                    found.add(i)

            stack.callback(ran.cut.node.register_prehook(keep).remove)
        torch.autograd.grad(score, leaf, allow_unused=True, retain_graph=True)
    return [ran for i, ran in enumerate(runs) if i in found]

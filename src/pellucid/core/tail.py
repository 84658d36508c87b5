"""A network from one of its layers on, as a network of its own: its input is what that layer gives.

What lies before the layer is computed once for each input. Modules that ended before the layer began then answer with
what they gave, and what other modules take from them (a shortcut around the layer) stays the input's own. Operations
that are no modules run again. Where the tail so made does not give the network's outputs, all before the layer is run
each time. Used by network.py alone.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from pellucid.core.layer import Taps, as_written, find, first_tensor, modules_of, with_first

__all__ = ["Tail"]


@dataclass(eq=False)
class _Run:
    """One run of a module: when it began and ended, and what it gave."""

    began: int
    ended: int = -1
    gave: Any = None


@dataclass(eq=False)
class _Recording:
    """All runs of all modules in one pass."""

    clock: int = 0
    runs: dict[nn.Module, list[_Run]] = field(default_factory=dict)

    def run(self, module: nn.Module, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Run the module and note it."""
        run = _Run(self._tick())
        self.runs.setdefault(module, []).append(run)
        result = forward(*args, **kwargs)
        run.ended = self._tick()
        run.gave = pytree.tree_map_only(Tensor, Tensor.clone, result)  # it may be written to
        return result

    def _tick(self) -> int:
        self.clock += 1
        return self.clock


class Tail(nn.Module):
    """The network `inside` as a function of a layer's activation (n, ...) and, (n, 1), of which input each row is.

    `call` runs the network on rows of inputs, which are `x` (B, ...). The layer may be one run of several, "relu:2".

    Raises:
        LayerError: there is no such layer, or it does not run once, or gives no tensor with a row for each input.
    """

    inside: nn.Module
    module: nn.Module

    def __init__(self, net: nn.Module, layer: str, x: Tensor, call: Callable[[Tensor], Any]) -> None:
        super().__init__()
        # Neither is a module of this one: nothing is done to the network twice.
        object.__setattr__(self, "inside", net)
        object.__setattr__(self, "module", find(net, layer))
        self.layer, self.x, self.call = layer, x, call
        self.skipped: dict[nn.Module, list[Any]] = {}
        with torch.no_grad():
            with self._recorded() as recording:
                expected = call(x)
            runs = recording.runs.get(self.module, [])
            taps = Taps([layer])
            taps.runs[layer] = [first_tensor(run.gave) for run in runs]
            self.activation = taps.of(layer, len(x))
            self.number = [tap is self.activation for tap in taps.runs[layer]].index(True)
            here = runs[self.number]
            self.gave = here.gave
            self.alone = len(runs) == 1
            before = {
                module: [run for run in each if run.ended < here.began and _has_rows(run.gave, len(x))]
                for module, each in recording.runs.items()
            }
            whole = {module: each for module, each in before.items() if len(each) == len(recording.runs[module])}
            outermost = {m: [run.gave for run in each] for m, each in whole.items() if not _within(each, whole)}
            self.skipped = outermost
            if not self._same(expected):
                self.skipped = {}

    def forward(self, activation: Tensor, index: Tensor) -> Any:
        """What the network returns where the layer gives `activation` for the inputs of these numbers."""
        rows = index[:, 0].long()

        def of_rows(gave: Any) -> Any:
            return pytree.tree_map_only(Tensor, lambda t: t[rows.to(t.device)], gave)

        with ExitStack() as stack:
            stack.enter_context(as_written(self.inside))
            for module, gave in self.skipped.items():
                answers = iter(gave)
                stack.enter_context(_instead(module, partial(_answer, answers, of_rows)))
            put = with_first(of_rows(self.gave), activation.to(self.activation.dtype))
            if self.alone:
                stack.enter_context(_instead(self.module, lambda *args, **kwargs: put))
            else:
                stack.enter_context(self._at_its_run(put))
            return self.call(self.x[rows.to(self.x.device)])

    @contextmanager
    def _at_its_run(self, put: Any) -> Iterator[None]:
        seen = [0]

        def replace(module: nn.Module, args: Any, output: Any) -> Any:
            seen[0] += 1
            return put if seen[0] == self.number + 1 else output

        handle = self.module.register_forward_hook(replace, prepend=True)
        try:
            yield
        finally:
            handle.remove()

    def _same(self, expected: Any) -> bool:
        """Whether the tail of the layer's own activation gives the outputs, but for rounding."""
        try:
            found = self(self.activation, torch.arange(len(self.x))[:, None])
        except RuntimeError:  # whatever a stranger's network does with what it is given
            return False
        pairs = zip(pytree.tree_leaves(expected), pytree.tree_leaves(found), strict=True)
        return all(_close(a, b) for a, b in pairs if isinstance(a, Tensor) and a.is_floating_point())

    @contextmanager
    def _recorded(self) -> Iterator[_Recording]:
        recording = _Recording()
        with ExitStack() as stack:
            stack.enter_context(as_written(self.inside))
            for module in set(modules_of(self.inside).values()):
                if isinstance(module, torch.jit.ScriptModule):
                    continue
                stack.enter_context(_instead(module, partial(recording.run, module, module.forward)))
            yield recording


def _answer(answers: Iterator[Any], of_rows: Callable[[Any], Any], *args: Any, **kwargs: Any) -> Any:
    return of_rows(next(answers))


@contextmanager
def _instead(module: nn.Module, forward: Any) -> Iterator[None]:
    """Within, the module's forward is another one."""
    held = vars(module)
    before = held.get("forward")
    held["forward"] = forward
    try:
        yield
    finally:
        if before is None:
            del held["forward"]
        else:
            held["forward"] = before


def _has_rows(gave: Any, rows: int) -> bool:
    tensors = [leaf for leaf in pytree.tree_leaves(gave) if isinstance(leaf, Tensor)]
    return bool(tensors) and all(t.ndim > 0 and len(t) == rows for t in tensors)


def _within(runs: list[_Run], skipped: dict[nn.Module, list[_Run]]) -> bool:
    """Whether each of these runs is part of another's that is skipped."""
    return all(
        any(other.began < run.began and run.ended < other.ended for each in skipped.values() for other in each)
        for run in runs
    )


def _close(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape:
        return False
    scale = float(one.abs().max()) if one.numel() else 0.0
    return not one.numel() or float((one - other).abs().max()) <= 1e3 * torch.finfo(one.dtype).eps * scale

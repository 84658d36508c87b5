"""A network from one of its layers on, as a network of its own: its input is what that layer gives.

What lies before the layer is computed once for each input. Modules that ended before the layer began then answer with
what they gave, and what other modules take from them (a shortcut around the layer) stays the input's own. Operations
that are no modules run again. Where the tail so made does not give the network's outputs, all before the layer is run
each time. Used by network.py alone.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from pellucid.core.folding import unfolded
from pellucid.core.layer import Taps, as_written, find, first_tensor, modules_of, with_first
from pellucid.errors import LayerError

__all__ = ["Tail"]

_ROUGHLY = 0.05  # in half precision, of the largest output


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
    but: Collection[nn.Module] = ()
    layer: list[Tensor | None] = field(default_factory=list)
    runs: dict[nn.Module, list[_Run]] = field(default_factory=dict)

    def run(self, module: nn.Module, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Run the module and note it."""
        run = _Run(self._tick())
        self.runs.setdefault(module, []).append(run)
        result = forward(*args, **kwargs)
        run.ended = self._tick()
        if module not in self.but:
            run.gave = pytree.tree_map_only(Tensor, Tensor.clone, result)  # it may be written to
        return result

    def note(self, module: nn.Module, args: Any, output: Any) -> None:
        """What the layer gave in the end, after hooks of the user's."""
        given = first_tensor(output)
        self.layer.append(None if given is None else given.clone())

    def _tick(self) -> int:
        self.clock += 1
        return self.clock


class _Watch(TorchFunctionMode):
    """Notes which of the marked answers are taken by an operation."""

    def __init__(self) -> None:
        super().__init__()
        self.of: dict[int, nn.Module] = {}
        self.held: list[Tensor] = []  # as long as they are, no other tensor has their number
        self.used: set[nn.Module] = set()

    def marked(self, gave: Any, module: nn.Module) -> Any:
        """The same, to be recognised."""
        return _Marked(gave, partial(self._mark, module))

    def _mark(self, module: nn.Module, answer: Any) -> Any:
        for tensor in pytree.tree_leaves(answer):
            if isinstance(tensor, Tensor):
                self.held.append(tensor)
                self.of[id(tensor)] = module
        return answer

    def note(self, taken: Any) -> None:
        """What takes these, takes the answers among them."""
        self.used |= {self.of[id(leaf)] for leaf in pytree.tree_leaves(taken) if id(leaf) in self.of}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.note((args, kwargs))
        return func(*args, **(kwargs or {}))


class _Marked(NamedTuple):
    """An answer, and what marks it when it is given."""

    gave: Any
    mark: Callable[[Any], Any]


class Tail(nn.Module):
    """The network `inside` as a function of a layer's activation (n, ...) and, (n, 1), of which input each row is.

    `call` runs the network on rows of inputs, which are `x` (B, ...). The layer may be one run of several, "relu:2".

    Raises:
        LayerError: there is no such layer, or it does not run once, or gives no tensor with a row for each input.
    """

    inside: nn.Module
    module: nn.Module
    skipped: dict[nn.Module, list[Any]]
    idle: dict[nn.Module, list[Any]]
    """What is skipped too, but only others that are skipped take what it gives: that of one input stands for all."""

    def __init__(self, net: nn.Module, layer: str, x: Tensor, call: Callable[[Tensor], Any], rows: int) -> None:
        super().__init__()
        # Neither is a module of this one: nothing is done to the network twice.
        object.__setattr__(self, "inside", net)
        object.__setattr__(self, "module", find(modules_of(net), layer))
        self.layer, self.x, self.call = layer, x[:1], call
        self.autocast = torch.is_autocast_enabled(x.device.type)
        self.parts = list(modules_of(net).values())
        with torch.no_grad():
            recording, outputs = self._recorded(x[:1], set(self.parts))
            self.number, _ = self._tap(recording, 1)
            runs = recording.runs[self.module]
            self.alone = len(runs) == 1 and isinstance(runs[0].gave, Tensor)
            self.idle = {}
            self._take(recording, _skippable(recording, runs[self.number]), 1)
            used = self._used()
            self.idle = {module: self.skipped.pop(module) for module in set(self.skipped) - used}
            ends = [_of_row(outputs, 1, 0)] * 2
            if len(x) > 1:
                ends = self._take_all(x, rows)
            if not self._same(ends):
                self.skipped, self.idle, self.turn = {}, {}, self.number + 1

    def _tap(self, recording: _Recording, rows: int) -> tuple[int, Tensor]:
        """Which of its module's runs the layer is, and what it gave for so many inputs."""
        taps = Taps([self.layer])
        runs = taps.runs[self.layer] = recording.layer
        tap = taps.of(self.layer, rows)
        return [other is tap for other in runs].index(True), tap

    def _take(self, recording: _Recording, skipped: Collection[nn.Module], rows: int) -> None:
        """Keep what these modules and the layer gave; and which of its runs the layer is where they are skipped."""
        outer = _outermost(recording, skipped)
        self.skipped = {m: [run.gave for run in runs] for m, runs in outer.items() if m not in self.idle}
        whole = [run for runs in outer.values() for run in runs]
        _, self.activation = self._tap(recording, rows)
        self.turn = sum(not _within(run, whole) for run in recording.runs[self.module][: self.number + 1])

    def _take_all(self, x: Tensor, rows: int) -> list[list[Tensor | None]]:
        """Keep what they give for all inputs, so many at once; the outputs of the first input and of the last."""
        parts, ends = [], []
        for some in x.split(rows):
            recording, outputs = self._recorded(some, {self.module, *self.skipped, *self.idle}, but=self.idle)
            self._take(recording, (*self.skipped, *self.idle), len(some))
            parts.append((self.skipped, self.activation, len(some)))
            ends += [_of_row(outputs, len(some), row) for row in (0, -1)]
        self.x = x
        self.activation = torch.cat([activation for _, activation, _ in parts])
        with_rows = all(_has_rows(each, n) for skipped, _, n in parts for runs in skipped.values() for each in runs)
        kept = parts[0][0] if with_rows else {}
        self.skipped = {
            module: [_joined([skipped[module][i] for skipped, _, _ in parts]) for i in range(len(runs))]
            for module, runs in kept.items()
        }
        self.idle = self.idle if with_rows else {}
        self.turn = self.turn if with_rows else self.number + 1
        return [ends[0], ends[-1]]

    def forward(self, activation: Tensor, index: Tensor) -> Any:
        """What the network returns where the layer gives `activation` for the inputs of these numbers."""
        rows = index[:, 0].long()

        def of_rows(gave: Any) -> Any:
            return pytree.tree_map_only(Tensor, lambda t: self._digits(t[rows.to(t.device)]), gave)

        def of_any(gave: Any) -> Any:
            return pytree.tree_map_only(Tensor, lambda t: t[:1].expand(len(rows), *t.shape[1:]), gave)

        with ExitStack() as stack:
            stack.enter_context(as_written(self.inside))
            stack.enter_context(
                unfolded(self.parts, {p for m in (*self.skipped, *self.idle, self.module) for p in m.modules()})
            )
            for module, gave in self.skipped.items():
                stack.enter_context(_instead(module, partial(_answer, iter(gave), of_rows)))
            for module, gave in self.idle.items():
                stack.enter_context(_instead(module, partial(_answer, iter(gave), of_any)))
            put = _laid_out(activation.to(self._digits(self.activation[:0]).dtype), self.activation)
            if self.alone:
                stack.enter_context(_instead(self.module, lambda *args, **kwargs: put))
            stack.enter_context(self._at_its_turn(put))
            return self.call(self.x[rows.to(self.x.device)])

    def _digits(self, t: Tensor) -> Tensor:
        """What was computed under autocast, in single precision where there is none: nothing else would convert it."""
        lowered = self.autocast and t.dtype in (torch.bfloat16, torch.float16)
        return t.float() if lowered and not torch.is_autocast_enabled(t.device.type) else t

    @contextmanager
    def _at_its_turn(self, put: Tensor) -> Iterator[None]:
        seen = [0]

        def replace(module: nn.Module, args: Any, output: Any) -> Any:
            seen[0] += 1
            return with_first(output, put) if seen[0] == self.turn else output

        handle = self.module.register_forward_hook(replace)  # after the user's own
        try:
            yield
        finally:
            handle.remove()
        if seen[0] < self.turn:
            raise LayerError(f"The layer {self.layer!r} ran for the inputs, but not for rows from there on.")

    def _same(self, ends: Sequence[Sequence[Tensor | None]]) -> bool:
        """Whether the tail of the layer's own activation gives the first input's outputs and the last one's, but for
        rounding, where the last comes first.
        """
        rows = [len(self.x) - 1, 0]
        try:
            found = pytree.tree_leaves(self(self.activation[rows], torch.tensor(rows)[:, None]))
        except Exception:  # noqa: BLE001  # whatever a stranger's network does with what it is given
            return False
        return all(
            len(end) == len(found)
            and all(a is None or (_has_rows(b, 2) and _close(a, b[i])) for a, b in zip(end, found, strict=True))
            for i, end in enumerate(reversed(ends))
        )

    def _used(self) -> set[nn.Module]:
        """Of the skipped modules those whose answers something takes, in a pass of the first input."""
        watch = _Watch()
        kept = self.skipped
        self.skipped = {module: [watch.marked(gave, module) for gave in each] for module, each in kept.items()}
        try:
            with watch:
                watch.note(self(self.activation.clone(), torch.zeros(1, 1)))
        except Exception:  # noqa: BLE001  # whatever a stranger's network does: `_same` sees to it
            return set(kept)
        finally:
            self.skipped = kept
        return watch.used

    def _recorded(
        self, x: Tensor, modules: Iterable[nn.Module], but: Collection[nn.Module] = ()
    ) -> tuple[_Recording, Any]:
        """One pass, with the runs of these modules, of some without what they gave; and what the network returned."""
        recording = _Recording(but=but)
        with ExitStack() as stack:
            stack.enter_context(as_written(self.inside))
            stack.enter_context(unfolded(self.parts))
            # With a hook inside, transformers run their modules, and not all of them at once.
            stack.callback(self.module.register_forward_hook(recording.note).remove)
            for module in modules:
                if not isinstance(module, torch.jit.ScriptModule):
                    stack.enter_context(_instead(module, partial(recording.run, module, module.forward)))
            return recording, self.call(x.clone())  # it may be written to


def _skippable(recording: _Recording, here: _Run) -> list[nn.Module]:
    """The modules of which every run ended before this one began, with one row for the input."""
    return [
        module
        for module, runs in recording.runs.items()
        if all(run.ended < here.began and _has_rows(run.gave, 1) for run in runs)
    ]


def _outermost(recording: _Recording, modules: Collection[nn.Module]) -> dict[nn.Module, list[_Run]]:
    """Of the runs of these modules those that are part of no other."""
    all_runs = [run for module in modules for run in recording.runs[module]]
    outer = {module: [run for run in recording.runs[module] if not _within(run, all_runs)] for module in modules}
    return {module: runs for module, runs in outer.items() if runs}


def _laid_out(tensor: Tensor, like: Tensor) -> Tensor:
    """The same in the memory layout in which the network gives it: some networks take no other."""
    if like.is_contiguous():
        return tensor.contiguous()
    nhwc = like.ndim == 4 and like.is_contiguous(memory_format=torch.channels_last)
    return tensor.contiguous(memory_format=torch.channels_last) if nhwc else tensor


def _joined(parts: Sequence[Any]) -> Any:
    """The tensors of each place, over all parts."""
    if len(parts) == 1:
        return parts[0]
    leaves, structure = zip(*(pytree.tree_flatten(part) for part in parts), strict=True)
    joined = [torch.cat(each) if isinstance(each[0], Tensor) else each[0] for each in zip(*leaves, strict=True)]
    return pytree.tree_unflatten(joined, structure[0])


def _answer(answers: Iterator[Any], of_rows: Callable[[Any], Any], *args: Any, **kwargs: Any) -> Any:
    gave = next(answers)
    return gave.mark(of_rows(gave.gave)) if isinstance(gave, _Marked) else of_rows(gave)


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


def _within(run: _Run, others: Iterable[_Run]) -> bool:
    """Whether the run is part of another."""
    return any(other.began < run.began and run.ended < other.ended for other in others)


def _of_row(outputs: Any, rows: int, row: int) -> list[Tensor | None]:
    """The tensors of one of so many inputs; None where there is no row of it."""
    leaves = pytree.tree_leaves(outputs)
    return [leaf[row] if _has_rows(leaf, rows) and leaf.is_floating_point() else None for leaf in leaves]


def _close(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape:
        return False
    if not one.numel():
        return True
    within = min(1e3 * torch.finfo(one.dtype).eps, _ROUGHLY) * float(one.abs().max())
    return float((one - other).abs().max()) <= within

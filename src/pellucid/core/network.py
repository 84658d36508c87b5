"""A network on one device, and the passes through it. Used by model.py alone.

Whatever a stranger's network raises comes out as a ModelError with its cause kept.
"""

import difflib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pellucid.core.bias import Added, biases
from pellucid.core.cuts import Cut, at_once, averaged, description, find_cuts, named_cut
from pellucid.core.executed import Executed, assign, ordered, recorded, walk_back
from pellucid.core.layer import last_spatial, tapped, witnessed
from pellucid.core.output import Selection, check_outputs, selected, takes_names
from pellucid.core.packing import Packing
from pellucid.core.prediction import OutputKind
from pellucid.core.rule import Keep, RuleBook, RulePass, Told
from pellucid.core.tail import Tail
from pellucid.core.target import Targets
from pellucid.errors import ArgumentError, CutError, LayerError, ModelError, PellucidError

__all__ = ["Ask", "Begun", "BiasPass", "FactoredGradient", "LayerPass", "Network", "RulePass"]


@dataclass(frozen=True)
class Ask:
    """What a pass is to give besides its outputs: what layers give, each place where a bias is added, or a record of
    what is executed; and, if not left out, a graph for gradients by that, or by the input.
    """

    layers: tuple[str, ...] = ()
    biases: bool = False
    gradients: bool = True
    record: Keep | None = None


class Begun(NamedTuple):
    """A pass of the rows x up to its outputs, which waits for targets. `leaf` is the copy that went through."""

    x: Tensor
    ask: Ask
    leaf: Tensor
    outputs: Tensor
    taps: tuple[Tensor, ...]
    added: Sequence[Added]
    read: Mapping[str, Tensor]
    executed: Executed | None


class LayerPass(NamedTuple):
    """What layers gave for rows of inputs, the gradients of the rows' targets by it if asked for, the targets (b,)."""

    activations: tuple[Tensor, ...]
    gradients: tuple[Tensor, ...]
    scores: Tensor


class BiasPass(NamedTuple):
    """The gradient by the input, each bias times the gradient where it is added (B, C, ...), and the targets (b,)."""

    gradient: Tensor
    biases: tuple[Tensor, ...]
    scores: Tensor


class FactoredGradient(NamedTuple):
    """Gradients of rows (B, *features) with their factors averaged over groups, the plain ones, and the cuts."""

    factored: Tensor
    plain: Tensor | None
    cuts: str


@dataclass(frozen=True, eq=False)
class Network:
    """A network and how it is run. `plain` are the shapes that it cannot take in channels_last, learnt as it runs;
    `dtype` is what it takes of several inputs packed into rows, which have digits enough for whole numbers.

    Rows are taken from whatever device they are on; what is returned is on the network's own.
    """

    net: nn.Module
    device: torch.device
    name: str
    select: Selection
    bfloat16: bool
    plain: set[tuple[int, ...]]
    packing: Packing | None = None
    kind: OutputKind | None = None
    dtype: torch.dtype | None = None

    def outputs(self, x: Tensor) -> Tensor:
        """The outputs (B, K), without gradients."""
        with torch.no_grad():
            return self._forward(self._laid_out(x))

    def outputs_as_asked(self, x: Tensor) -> Tensor:
        """The outputs (B, K) for rows that require gradients, in whatever gradient mode there is."""
        return self._forward(self._laid_out(x).requires_grad_())

    def scored(self, x: Tensor, targets: Targets, begun: Begun | None = None) -> tuple[Tensor, Tensor]:
        """A copy of the rows that can be differentiated by, and the sum of their targets."""
        begun = begun or self.begin(x, Ask(), targets.layers)
        with torch.enable_grad():
            return begun.leaf, self._targets_of(begun, targets).sum()

    def scores(self, x: Tensor, targets: Targets) -> Tensor:
        """Each row's target, (b,), without gradients."""
        return _as_map(self._targets_of(self.begin(x, Ask(gradients=False), targets.layers), targets))

    def begin(self, x: Tensor, ask: Ask, reads: Sequence[str] = ()) -> Begun:
        """A pass up to the outputs, with what is asked for besides; and what the layers give that targets read.

        Of layers there is a graph from the first of them on only.
        """
        whole = ask.gradients and not ask.layers and self.packing is not None and all(self.packing.held)
        if whole and not (ask.record and ask.record.embedded):
            raise ArgumentError(self._of_whole_numbers())
        leaf = self._laid_out(x)
        with ExitStack() as stack:
            stack.enter_context(torch.set_grad_enabled(ask.gradients))
            for module in self.net.modules() if whole else ():
                if isinstance(module, nn.Embedding):
                    stack.callback(module.register_forward_hook(_begin_here).remove)
            added = stack.enter_context(biases(self.net)) if ask.biases else []
            taps = stack.enter_context(tapped(self.net, ask.layers, leaves=ask.gradients)) if ask.layers else None
            read = stack.enter_context(tapped(self.net, reads)) if reads else None
            executed = stack.enter_context(recorded(self.net, ask.record)) if ask.record is not None else None
            if ask.gradients and not ask.layers:
                leaf.requires_grad_()
            outputs = self._forward(leaf)
        found = () if taps is None else tuple(taps.of(layer, len(x)) for layer in ask.layers)
        given = {} if read is None else {name: read.of(name, len(x)) for name in reads}
        return Begun(x, ask, leaf, outputs, found, added, given, executed)

    def _of_whole_numbers(self) -> str:
        """Why there is no gradient, and what to take instead."""
        assert self.packing is not None  # noqa: S101  # asked of packed rows only
        layers = [name for name, module in self.net.named_modules() if isinstance(module, nn.Embedding)]
        named = f"layer={layers[0]!r}" if layers else "layer=..."
        return (
            f"{' and '.join(map(repr, self.packing.names))} are whole numbers, by which nothing can be differentiated. "
            f"Explain the layer that embeds them, AtLayer(base=..., {named}), or give the network what it gives."
        )

    def layer_pass(self, x: Tensor, targets: Targets, ask: Ask, begun: Begun | None = None) -> LayerPass:
        """What the layers give, and the gradients of the rows' targets by it if asked for."""
        begun = begun or self.begin(x, ask, targets.layers)
        scores = self._targets_of(begun, targets)
        by: tuple[Tensor, ...] = ()
        if ask.gradients and scores.requires_grad:
            with self._named_errors(x):
                by = torch.autograd.grad(scores.sum(), begun.taps, allow_unused=True, materialize_grads=True)
        elif ask.gradients:
            by = tuple(torch.zeros_like(tap) for tap in begun.taps)
        return LayerPass(tuple(map(_as_map, begun.taps)), tuple(map(_as_map, by)), _as_map(scores))

    def bias_pass(self, x: Tensor, targets: Targets, begun: Begun | None = None) -> BiasPass:
        """The gradient, and each bias of the network times the gradient where it is added."""
        begun = begun or self.begin(x, Ask(biases=True), targets.layers)
        scores = self._targets_of(begun, targets)
        if not scores.requires_grad:
            return BiasPass(_as_map(torch.zeros_like(begun.leaf)), (), _as_map(scores))
        with self._named_errors(x):
            places = [begun.leaf, *(one.at for one in begun.added)]
            gradient, *by = torch.autograd.grad(scores.sum(), places, allow_unused=True, materialize_grads=True)
        products = [_as_map(g) * one.bias for g, one in zip(by, begun.added, strict=True)]
        if len(x) > 1 and any(len(product) != len(x) for product in products):  # rows of windows: whose, shows in one
            single = [self.bias_pass(x[i : i + 1], targets[i : i + 1]) for i in range(len(x))]
            products = [torch.cat(each) for each in zip(*(one.biases for one in single), strict=True)]
        elif len(x) == 1:
            products = [product if len(product) == 1 else product.flatten()[None] for product in products]
        return BiasPass(_as_map(gradient), tuple(products), _as_map(scores))

    def rule_pass(
        self, x: Tensor, targets: Targets, book: RuleBook, beside: Tensor | None = None, begun: Begun | None = None
    ) -> RulePass:
        """What reaches the input by rules in place of derivatives; a pass of the rows `beside` serves the rules."""
        begun = begun or self.begin(x, Ask(record=book.keep), targets.layers)
        other = None if beside is None else self.begin(beside, Ask(record=book.keep), targets.layers)
        scores_beside = None if other is None else _as_map(self._targets_of(other, targets))
        scores, roots = self._root(begun, targets)
        leaf, executed, ends = begun.leaf, begun.executed, _ends(begun)
        if not roots:
            return RulePass(_as_map(torch.zeros_like(leaf)), None, scores, scores_beside)
        assert executed is not None  # noqa: S101  # it was asked for
        del begun  # what is gone through shall be let go of
        with self._named_errors(leaf), torch.no_grad():
            compared = None if other is None else other.executed
            messages, landed, seen = walk_back(roots, leaf, executed, ends, book, compared)
        arrived = None if landed is None else _as_map(landed)
        return RulePass(_as_map(messages), arrived, scores, scores_beside, tuple(map(_as_map, seen)))

    def told(self, x: Tensor, targets: Targets, book: RuleBook, beside: Tensor | None = None) -> list[Told]:
        """What is executed on the way to the targets, and the rule of each operation."""
        ask = Ask(record=replace(book.keep, named=True))
        begun = self.begin(x, ask, targets.layers)
        other = None if beside is None else self.begin(beside, ask, targets.layers)
        _, roots = self._root(begun, targets)
        assert begun.executed is not None  # noqa: S101  # it was asked for
        if not roots:
            return []
        given = assign(ordered(roots), begun.executed, _ends(begun), book, None if other is None else other.executed)
        return [
            Told(one.module, one.what, one.kind, one.shape, each.words, bool(each.refusal))
            for one, each in given.items()
        ]

    def _root(self, begun: Begun, targets: Targets) -> tuple[Tensor, list[Any]]:
        """The targets (b,), and the node of their sum, if they depend on the input."""
        with torch.enable_grad():
            scores = self._targets_of(begun, targets)
            root = scores.sum().grad_fn
        return _as_map(scores), [] if root is None else [root]

    def _targets_of(self, begun: Begun, targets: Targets) -> Tensor:
        with torch.set_grad_enabled(begun.ask.gradients):
            return targets.score(begun.outputs, begun.read)

    def spatial_layer(self, x: Tensor, reads: Sequence[str] = ()) -> str:
        """The last layer of inputs like x that gives a grid of cells; of layers that targets read, the last before.

        Raises:
            LayerError: there is none.
        """
        leaf = self._laid_out(x).requires_grad_()
        with torch.enable_grad(), witnessed(self.net) as order, tapped(self.net, reads) as taps:
            outputs = self._forward(leaf)
        if not reads:
            return last_spatial(order, [outputs], self.features(x), leaf)
        ends = [taps.of(name, len(x)) for name in reads]
        try:
            return last_spatial(order, ends, self.features(x), leaf)
        except LayerError:
            return last_spatial(order, ends, self.features(x), leaf, own=True)

    def features(self, x: Tensor) -> tuple[int, ...]:
        """The shape of the input by which grids are told: of several parts, that which most looks like a picture."""
        if self.packing is None:
            return tuple(x.shape[1:])
        return self.packing.shapes[self.packing.drawn]

    def tail(self, layer: str, x: Tensor, rows: int) -> "Network":
        """The network from this layer on, for these inputs (so many at once): of rows that `packing` packs.

        Raises:
            LayerError: there is no such layer.
        """
        placed = self._laid_out(x)
        with self._named_errors(x), self._in_precision():
            tail = Tail(self.net, layer, placed, self._invoke, rows)
        packing = Packing(("activation", "row"), (tuple(tail.activation.shape[1:]), (1,)), ("float32", "int64"))
        return replace(self, net=tail, packing=packing, plain=set())

    def gradient(self, x: Tensor, targets: Targets, begun: Begun | None = None) -> Tensor:
        """The gradient of each row's target with respect to that row; zero where none reaches it."""
        leaf, score = self.scored(x, targets, begun)
        if not score.requires_grad:  # a constant function, or one computed under no_grad: the diagnosis says so
            return _as_map(torch.zeros_like(leaf))
        return _as_map(self.backward(leaf, score))

    def backward(self, leaf: Tensor, score: Tensor, *, keep: bool = False) -> Tensor:
        """The gradient of what `scored` gave; `keep` the graph for another."""
        with self._named_errors(leaf):
            [found] = torch.autograd.grad(score, leaf, retain_graph=keep, allow_unused=True, materialize_grads=True)
        return found.detach()

    def factored_gradient(
        self, x: Tensor, targets: Targets, group: int, cuts: int | tuple[str, ...], *, plain: bool
    ) -> FactoredGradient:
        """Rows whose mean over each `group` neighbours is the gradient with its factors averaged apart at the cuts."""
        with self._watched(cuts if isinstance(cuts, tuple) else ()) as outputs:
            leaf, score = self.scored(x, targets)
        if not score.requires_grad:
            raise CutError(f"No gradient reaches the input of {self.name}, so there is nothing to factor.")
        named = [named_cut(name, found, len(leaf), score) for name, found in outputs.items()]
        places = named if isinstance(cuts, tuple) else find_cuts(score, len(leaf), cuts)
        beside = self.backward(leaf, score, keep=True) if plain else None
        with averaged(places, group):
            factored = self.backward(leaf, score)
        return FactoredGradient(_as_map(factored), None if beside is None else _as_map(beside), description(places))

    @contextmanager
    def _watched(self, names: tuple[str, ...]) -> Iterator[dict[str, list[Cut | None]]]:
        """Where in the graph the modules of these names put what they give, while they run."""
        found: dict[str, list[Cut | None]] = {name: [] for name in names}
        known = dict(self.net.named_modules())
        with ExitStack() as stack:
            for name in names:
                if name not in known:
                    near = difflib.get_close_matches(name, known, n=3, cutoff=0.3)
                    hint = f" Did you mean {' or '.join(near)}?" if near else ""
                    raise CutError(f"{self.name} has no module {name!r}.{hint}")

                def watch(module: nn.Module, args: Any, output: Any, name: str = name) -> None:
                    found[name].append(at_once(output))

                stack.callback(known[name].register_forward_hook(watch).remove)
            yield found

    def _laid_out(self, x: Tensor) -> Tensor:
        """A copy of x in the layout in which CPUs and GPUs convolve fastest, unless the network cannot take it."""
        x = x.detach().to(self.device)
        if self.packing is not None:
            return x.clone()
        if x.ndim != 4 or tuple(x.shape[1:]) in self.plain:
            return x.clone(memory_format=torch.contiguous_format)
        return x.clone(memory_format=torch.channels_last)

    def _forward(self, x: Tensor) -> Tensor:
        """The outputs for x, which must be a copy: the network may write into what it is given."""
        # A network may write into its input, which a leaf of the graph does not allow.
        given = x.clone() if x.requires_grad else x
        with self._named_errors(x):
            try:
                result = self._run(given)
            except RuntimeError as error:
                pictures = x.ndim == 4 or self.packing is not None
                if "view size" not in str(error) or not pictures or tuple(x.shape[1:]) in self.plain:
                    raise
                # x.view(len(x), -1) after a convolution is common, and does not work in channels_last.
                self.plain.add(tuple(x.shape[1:]))
                result = self._run(given.contiguous())
        outputs = selected(result, self.select, self.name)
        if outputs.ndim == 1 and len(outputs) == len(x):
            outputs = outputs[:, None]
        check_outputs(outputs, len(x), self.kind, self.name)
        return outputs.to(x.dtype)

    def _run(self, x: Tensor) -> object:
        with self._in_precision():
            return self._invoke(x)

    def _in_precision(self) -> torch.autocast:
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.bfloat16)

    def _invoke(self, x: Tensor) -> object:
        if self.packing is None:
            return self.net(x)
        parts = self.packing.given(x, self.dtype)
        if tuple(x.shape[1:]) not in self.plain:
            parts = [p.contiguous(memory_format=torch.channels_last) if p.ndim == 4 else p for p in parts]
        if not self.packing.by_name:
            return self.net(*parts)
        named = dict(zip(self.packing.names, parts, strict=True))
        return self.net(**named) if takes_names(self.net, named) else self.net(named)

    @contextmanager
    def _named_errors(self, x: Tensor) -> Iterator[None]:
        """Whatever a stranger's network raises, with its cause kept."""
        try:
            yield
        except PellucidError:
            raise
        except Exception as error:
            raise ModelError(f"{self.name} failed on a batch of shape {tuple(x.shape)}: {error}") from error


def _begin_here(module: nn.Module, args: Any, output: Tensor) -> Tensor:
    return output.detach().requires_grad_()


def _ends(begun: Begun) -> list[Any]:
    """The nodes of what the network gave to the targets."""
    return [t.grad_fn for t in (begun.outputs, *begun.read.values()) if t.grad_fn is not None]


def _as_map(gradient: Tensor) -> Tensor:
    """Contiguous, and in single precision at the least: half has too few digits to accumulate, too small a range."""
    return gradient.detach().to(torch.promote_types(gradient.dtype, torch.float32)).contiguous()

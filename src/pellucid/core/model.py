"""PyTorch networks as models, and the only place that touches a network.

Whatever a call does to a network (evaluation mode, frozen parameters, gradient mode) is undone when it ends, also by an
error; the global random state is given back as it was (core/guard.py). A process serves one call at a time. The parts
stand in files that this one alone uses: network.py the passes, replicas.py the devices; folding.py, depthwise.py,
heap.py, memory.py, footprint.py, precision.py and tuning.py what makes them fit and fast.
"""

import copy
import itertools
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, Literal, NamedTuple, Self, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pellucid.core.abstract_model import MOST_ROWS, UNKNOWN, Inputs, Model, as_input
from pellucid.core.card import Cost, Needs
from pellucid.core.checks import check_choice, check_count
from pellucid.core.depthwise import strides_in_single
from pellucid.core.fingerprint import hash_of, marks
from pellucid.core.folding import Folded, find_pairs, folded, is_plain, together
from pellucid.core.footprint import Footprint, measured, measured_by_rules
from pellucid.core.guard import one_call_at_a_time, same_network, same_random_state, seed_all
from pellucid.core.heap import kept_heap
from pellucid.core.input import Preprocess
from pellucid.core.linear import linear_map
from pellucid.core.memory import Budget, Watch, available, bytes_of
from pellucid.core.network import Ask, Begun, BiasPass, FactoredGradient, LayerPass, Network
from pellucid.core.output import Selection
from pellucid.core.packing import Packing
from pellucid.core.precision import PrecisionTest, compare, has_bfloat16
from pellucid.core.prediction import OutputKind
from pellucid.core.random import Key, normal
from pellucid.core.replicas import Networks, Replicas, devices_of, workers
from pellucid.core.rule import RuleBook, RulePass, Told
from pellucid.core.tail import Tail
from pellucid.core.target import ClassScore, Targets
from pellucid.core.tuning import Tuning, sizes_up_to, tuned
from pellucid.errors import ModelError

__all__ = ["UNKNOWN", "Ask", "BiasPass", "FactoredGradient", "Inputs", "LayerPass", "Model", "TorchModel", "as_input"]


T = TypeVar("T")


class Clean(NamedTuple):
    """The pass of a call's clean inputs, and the networks that made it."""

    x: Tensor
    ask: Ask
    networks: Networks
    begun: list[Begun]


class TorchModel(Model):
    """Any PyTorch network from a tensor (B, *features), or several, to outputs (B, K) or (B,), (B, K, H, W) of places,
    or boxes (B, N, 4 + K).

    `preprocess` reads originals, `labels` names the classes, `output` declares what the outputs are ("logits",
    "probabilities", "regression", "segmentation", "detection"; all but the last are recognised if left out), `select`
    picks the tensor out of a dict or tuple; several are joined along their last axis. `mode="as-is"` keeps each
    module's training mode; the default explains in evaluation mode and restores.

    `device` other than the network's own works on a copy there, which follows what is written into the network's
    weights; a tuple of devices divides each micro-batch among copies (a network that draws random numbers needs
    different ones). `precision="bfloat16"` is autocast; "auto" lets sampling methods compare eight samples in both
    precisions and take bfloat16 if that is worth it, and is float32 otherwise. A network in another type than float32
    stays in it.
    `memory_limit` ("2GiB", or bytes) bounds what a call takes above what there is at its start.

    Raises:
        ArgumentError: a setting that does not exist, labels that do not fit.
        ModelError: not a network, or one whose parameters are not initialised.

    Example:
        >>> import torch, pellucid as pl
        >>> model = pl.TorchModel(torch.nn.Linear(4, 2), labels=["no", "yes"])
        >>> pl.SimpleGradient()(model, torch.zeros(3, 4), target="yes").scores.shape
        torch.Size([3, 4])
    """

    offers = Needs.SCORES | Needs.GRADIENTS | Needs.ACTIVATIONS | Needs.MODULES | Needs.WEIGHTS | Needs.OPERATIONS

    def __init__(
        self,
        net: nn.Module,
        *,
        preprocess: Preprocess | None = None,
        labels: Sequence[str] | None = None,
        output: Literal["logits", "probabilities", "regression", "segmentation", "detection"] | None = None,
        select: Selection = None,
        mode: Literal["eval", "as-is"] = "eval",
        device: str | torch.device | Sequence[str | torch.device] | None = None,
        precision: Literal["bfloat16", "auto"] | None = None,
        micro_batch: int | None = None,
        memory_limit: str | int | None = None,
        name: str | None = None,
    ) -> None:
        super().__init__(preprocess=preprocess, labels=labels, output=output, micro_batch=micro_batch)
        if not isinstance(net, nn.Module):
            raise ModelError(
                f"TorchModel takes a torch.nn.Module. Got {type(net).__name__}. For a prediction function write "
                "pl.FunctionModel(f); for a file pl.load(path)."
            )
        check_choice("mode", mode, ("eval", "as-is"))
        if precision is not None:
            check_choice("precision", precision, ("bfloat16", "auto"))
        if any(isinstance(p, nn.parameter.UninitializedParameter) for p in net.parameters()):
            raise ModelError(
                "The network has lazy modules that no input has initialised yet. Run it once, then explain."
            )
        self.select, self.mode, self.precision = select, mode, precision
        self.name = name or type(net).__name__
        self.budget = Budget(None if memory_limit is None else bytes_of(memory_limit))
        self.replicas = Replicas(net, devices_of(device))
        self.width = len(self.replicas.devices)
        self._hashed: tuple[Any, str] | None = None
        self.recorded: PrecisionTest | None = None  # by the recipe that is run again
        # What was learnt of a shape of inputs, shared with copies:
        self.plain: set[tuple[int, ...]] = set()  # it cannot be taken in channels_last
        self.pairs: dict[Hashable, tuple[tuple[str, str], ...]] = {}  # norms that can be folded
        self.folds: dict[Hashable, Sequence[Sequence[Folded]]] = {}  # the weights of the last call's
        self.tested: dict[tuple[Hashable, ...], PrecisionTest] = {}
        self.layers: dict[Hashable, str] = {}  # the last with a grid of cells
        # Within a call:
        self.inside = self.was_training = False
        self.key: Key | None = None
        self.pool: ThreadPoolExecutor | None = None
        self.settled: PrecisionTest | None = None
        self.folded_bytes = 0
        self.tails: Networks | None = None  # from a layer on
        self.clean: Clean | None = None  # the prediction's pass, while the method may go on from it

    @property
    def net(self) -> nn.Module:
        """The network that is run, on the first device."""
        return self.replicas.nets[0]

    @property
    def device(self) -> torch.device:
        """The first device, where inputs are put and results gathered."""
        return self.replicas.devices[0]

    @property
    def dtype(self) -> torch.dtype:
        """The floating-point type of the parameters; float32 for a network without any."""
        tensors = itertools.chain(self.net.parameters(), self.net.buffers())
        return next((tensor.dtype for tensor in tensors if tensor.is_floating_point()), torch.get_default_dtype())

    @property
    def memory_limit(self) -> int | None:
        """The most that a call may take, in bytes."""
        return self.budget.limit

    @property
    def bfloat16(self) -> bool:
        """Whether passes run in bfloat16 autocast now. What is not float32 autocast leaves alone."""
        asked = self.precision == "bfloat16" or (self.settled is not None and self.settled.bfloat16)
        return asked and self.dtype == torch.float32

    @property
    def networks(self) -> Networks:
        """The networks as they are run now."""
        if self.tails is not None:
            return Networks([replace(one, bfloat16=self.bfloat16) for one in self.tails.each], self.pool)
        each = zip(self.replicas.nets, self.replicas.devices, strict=True)
        run = [
            Network(
                net, device, self.name, self.select, self.bfloat16, self.plain, self.packing, self.output, self.dtype
            )
            for net, device in each
        ]
        return Networks(run, self.pool)

    def digit_bytes(self, x: Tensor) -> int:
        return 2 if self.bfloat16 else x.element_size()

    def place(self, x: Tensor) -> Tensor:
        # An inference tensor cannot take part in autograd, and nobody wants gradients in a tensor of their own.
        with torch.inference_mode(False):
            digits = self.dtype if self.packing is None else torch.promote_types(self.dtype, torch.float32)
            return x.detach().clone().to(self.device, digits)

    @contextmanager
    def undisturbed(self, key: Key, packing: Packing | None = None) -> Iterator[Self]:
        with ExitStack() as stack:
            stack.enter_context(one_call_at_a_time())
            if not self.inside:
                self.replicas.follow()
            was_training = any(getattr(module, "training", False) for module in self.net.modules())
            for device in dict.fromkeys(self.replicas.devices):
                stack.enter_context(same_random_state(device, _seed(key)))
            for net in self.replicas.nets:
                stack.enter_context(same_network(net, evaluate=self.mode == "eval"))
            if self.budget.limit is None:  # gaps in a heap that is kept are in no prediction
                stack.enter_context(kept_heap(self.device))
            stack.enter_context(torch.inference_mode(False))
            quiet = stack.enter_context(super().undisturbed(key, packing))
            quiet.inside, quiet.was_training, quiet.key = True, was_training, key
            quiet.budget = self.budget.within()
            quiet.pool = stack.enter_context(workers(self.width)) if self.width > 1 else None
            yield quiet

    def restart(self) -> None:
        assert self.key is not None  # noqa: S101  # within a call
        for device in dict.fromkeys(self.replicas.devices):
            seed_all(device, _seed(self.key))

    @contextmanager
    def watched(self, inputs: int) -> Iterator[Watch | None]:
        with self.budget.watched(inputs, self.replicas.devices) as self.budget:
            yield self.budget.watch

    @contextmanager
    def quick(self, x: Float[Tensor, "b *features"]) -> Iterator[None]:
        if self.folded_bytes:  # by a method around this one
            yield
            return
        kind = self._kind(x)
        modules = [dict(net.named_modules()) for net in self.replicas.nets]
        known = [modules[0][name] for pair in self.pairs.get(kind, ()) for name in pair]
        # Modes and hooks are no part of the structure, and may have changed since.
        if kind not in self.pairs or not all(is_plain(module) for module in known):
            names = {module: name for name, module in modules[0].items()}
            # In a call of its own, so that the network draws the same random numbers whether or not it was tried.
            with self.undisturbed(Key.named("fold")) as apart, torch.enable_grad():
                # In full precision: rounding would hide whether folding changes anything.
                first = replace(apart.networks.each[0], bfloat16=False)
                found = find_pairs(self.net, lambda: first.outputs_as_asked(x[:1]))
            self.pairs[kind] = tuple((names[convolution], names[norm]) for convolution, norm in found)
        with ExitStack() as stack:
            stack.callback(setattr, self, "folded_bytes", self.folded_bytes)
            for weights, of_net in zip(self._folds(self.pairs[kind], modules), modules, strict=True):
                pairs = [(of_net[convolution], of_net[norm]) for convolution, norm in self.pairs[kind]]
                stack.enter_context(folded(pairs, weights))
                stack.enter_context(strides_in_single(of_net.values()))
                self.folded_bytes += sum(part.nbytes for pair in weights for part in pair)
            yield

    def _folds(
        self, pairs: tuple[tuple[str, str], ...], modules: Sequence[Mapping[str, nn.Module]]
    ) -> Sequence[Sequence[Folded]]:
        """The weights of these folded pairs, for each network; those of the last call serve while nothing changes."""
        asked = self._hashed and self._hashed[1], pairs
        if asked in self.folds:
            return self.folds[asked]
        found = [[together(of_net[convolution], of_net[norm]) for convolution, norm in pairs] for of_net in modules]
        if self.budget.limit is None and asked[0] is not None:  # what stays is in no prediction
            self.folds.clear()
            self.folds[asked] = found
        return found

    def settle_precision(
        self,
        x: Float[Tensor, "b *features"],
        halves: Callable[[], Sequence[Callable[[Model], Tensor]]],
        about: Hashable,
        *,
        spread: bool,
    ) -> None:
        if self.precision != "auto" or self.settled is not None or self.dtype != torch.float32:
            return
        kind = (self._kind(x), self._hashed and self._hashed[1], about)
        if self.recorded is None and kind not in self.tested:
            with self.undisturbed(Key.named("precision")) as apart:
                single, half = apart.in_precision(None), apart.in_precision("bfloat16")
                parts = halves()
                slow, fast = ([partial(part, model) for part in parts] for model in (single, half))
                self.tested[kind] = compare(slow, fast, self.now, spread=spread)
            self.trials += single.passes + half.passes + single.trials + half.trials
        self.settled = self.recorded or self.tested[kind]

    def in_precision(self, precision: Literal["bfloat16"] | None) -> "TorchModel":
        """A copy for trials, which counts its own passes."""
        model = copy.copy(self)
        model.precision, model.settled, model.passes, model.trials = precision, None, Cost(), Cost()
        return model

    def outputs(self, x: Float[Tensor, "b *features"]) -> Float[Tensor, "b *k"]:
        self.passes += Cost(forward=len(x))
        return torch.cat([self.networks.outputs(part) for part in torch.split(x, self.rows(x))])

    def scores(self, x: Float[Tensor, "b *features"], targets: Targets) -> Float[Tensor, " b"]:
        self.passes += Cost(forward=len(x))
        return torch.cat([self.networks.scores(x[part], targets[part]) for part in self._parts(x)])

    def clean_outputs(self, x: Float[Tensor, "b *features"], ask: Ask | None) -> Float[Tensor, "b *k"]:
        if self.packing is not None and all(self.packing.held):
            self.sound.add(tuple(x.shape[1:]))  # whole numbers have no gradient that could be missing
        # A graph that waits would not outlast another pass of norms in training mode; under a memory limit one graph is
        # what was predicted, and the diagnosis may make another.
        training = self.mode == "as-is" and self.was_training
        if ask is None or training or self.budget.limit is not None or len(x) > self.rows(x):
            return super().clean_outputs(x, ask)
        self.passes += Cost(forward=len(x))
        networks = self.networks
        self.clean = Clean(x, ask, networks, networks.begin(x, ask))
        return networks.outputs_of(self.clean.begun)

    def _from_clean(self, x: Tensor, targets: Targets, ask: Ask, go_on: Callable[[Clean], T]) -> T | None:
        """What the clean pass gives, if the same was asked of it and the targets are of the outputs; it serves once."""
        clean, self.clean = self.clean, None
        if clean is None or clean.x is not x or clean.ask != ask or targets.layers:
            return None
        try:
            found = go_on(clean)
        except ModelError as error:
            if "modified by an inplace operation" not in str(error):
                raise
            return None  # the network writes into what its graph needs, and the diagnosis ran it in between
        self.passes += Cost(backward=len(x) * ask.gradients)
        return found

    def layer_pass(
        self, x: Float[Tensor, "b *features"], targets: Targets, layers: Sequence[str], *, gradients: bool
    ) -> LayerPass:
        if Needs.ACTIVATIONS not in self.offers:
            return super().layer_pass(x, targets, layers, gradients=gradients)
        ask = Ask(layers=tuple(layers), gradients=gradients)
        found = self._from_clean(x, targets, ask, lambda c: c.networks.layer_pass(x, targets, ask, c.begun))
        if found is not None:
            return found
        self.passes += Cost(forward=len(x), backward=len(x) * gradients)
        parts = [self.networks.layer_pass(x[part], targets[part], ask) for part in self._parts(x)]
        activations, by, scores = zip(*parts, strict=True)
        return LayerPass(_joined(activations), _joined(by), torch.cat(scores))

    def bias_pass(self, x: Float[Tensor, "b *features"], targets: Targets) -> BiasPass:
        if Needs.WEIGHTS not in self.offers:
            return super().bias_pass(x, targets)
        ask = Ask(biases=True)
        found = self._from_clean(x, targets, ask, lambda c: c.networks.bias_pass(x, targets, c.begun))
        if found is not None:
            return found
        self.passes += Cost(forward=len(x), backward=len(x))
        parts = [self.networks.bias_pass(x[part], targets[part]) for part in self._parts(x)]
        gradients, biases, scores = zip(*parts, strict=True)
        return BiasPass(torch.cat(gradients), _joined(biases), torch.cat(scores))

    def rule_pass(
        self,
        x: Float[Tensor, "b *features"],
        targets: Targets,
        book: RuleBook,
        beside: Float[Tensor, "b *features"] | None = None,
    ) -> RulePass:
        if Needs.OPERATIONS not in self.offers:
            return super().rule_pass(x, targets, book, beside)
        ask = Ask(record=book.keep)
        self.passes += Cost(forward=0 if beside is None else len(beside))
        found = self._from_clean(x, targets, ask, lambda c: c.networks.rule_pass(x, targets, book, beside, c.begun))
        if found is not None:
            return found
        self.passes += Cost(forward=len(x), backward=len(x))
        rows = self._rows_by_rules(x, targets, book, beside)
        shares = [slice(start, start + rows) for start in range(0, len(x), rows)]
        each = [(part, None if beside is None else beside[part]) for part in shares]
        parts = [self.networks.rule_pass(x[part], targets[part], book, other) for part, other in each]
        return RulePass.joined(parts, lambda each: torch.cat(list(each)))

    def _rows_by_rules(self, x: Tensor, targets: Targets, book: RuleBook, beside: Tensor | None) -> int:
        """How many rows go at once: under a memory limit, by what such passes keep besides the plain ones."""
        most = self.rows(x)
        if self.budget.limit is None:
            return most

        def measure(two_fit: Callable[[Footprint], bool]) -> Footprint:
            with self.undisturbed(Key.named("memory")) as apart:
                network, row, others = apart.networks.each[0], x[:1], None if beside is None else beside[:1]
                found = measured_by_rules(network, row, targets[:1], book, others, two_fit=two_fit)
            self.trials += found.cost
            return found

        _, maps = self.planned
        peak = self._peaks(x, 1, maps, measure, (book.footprint, beside is not None), len(x), beside is not None)
        return self.budget.fitting(min(most, len(x)), 1, peak, self.name, len(x))

    def told(
        self,
        x: Float[Tensor, "b *features"],
        targets: Targets,
        book: RuleBook,
        beside: Float[Tensor, "b *features"] | None = None,
    ) -> list[Told]:
        if Needs.OPERATIONS not in self.offers:
            return super().told(x, targets, book, beside)
        self.passes += Cost(forward=len(x) + (0 if beside is None else len(beside)))
        return self.networks.each[0].told(x, targets, book, beside)

    @contextmanager
    def tail(self, x: Float[Tensor, "b *features"], layer: str) -> Iterator[tuple[Model, Float[Tensor, "b features"]]]:
        if Needs.MODULES not in self.offers:
            super().tail(x, layer)
        self.passes += Cost(forward=len(x))
        self.trials += Cost(forward=3)
        rest = copy.copy(self)
        rest.passes, rest.trials = Cost(), Cost()
        rest.recorded_rows = None  # that of the input's rows
        rest.tails = self.networks.tail(layer, x, self.rows(x))
        first = rest.tails.each[0]
        assert isinstance(first.net, Tail)  # noqa: S101  # just made
        rest.packing, rest.preprocess = first.packing, None  # pixels are no units of a layer
        activation = first.net.activation.to(torch.promote_types(first.net.activation.dtype, torch.float32))
        index = torch.arange(len(x), device=activation.device)[:, None]
        try:
            yield rest, torch.cat([activation.flatten(1), index.to(activation)], 1)
        finally:
            self.passes += rest.passes
            self.trials += rest.trials

    def spatial_layer(self, x: Float[Tensor, "b *features"], reads: Sequence[str] = ()) -> str:
        if Needs.MODULES not in self.offers:
            return super().spatial_layer(x, reads)
        kind = (self._kind(x), tuple(reads))
        if kind not in self.layers:
            # Of noise, so that it depends on the network and the shape alone.
            probe = torch.from_numpy(normal(Key.named("layer"), 0, (1, *x.shape[1:]))).to(x)
            if self.packing is not None:
                mask = self.packing.mask(x)
                probe = probe * mask + x[:1] * (1 - mask)
            trained = copy.copy(self)
            trained.mode = "eval"  # norms in training mode take no single row
            with trained.undisturbed(Key.named("layer")) as apart:
                self.layers[kind] = apart.networks.each[0].spatial_layer(probe, reads)
            self.trials += Cost(forward=1, backward=1)
        return self.layers[kind]

    def features(self, x: Float[Tensor, "b *features"]) -> tuple[int, ...]:
        return self.networks.each[0].features(x)

    def _parts(self, x: Tensor) -> list[slice]:
        size = self.rows(x)
        return [slice(start, start + size) for start in range(0, len(x), size)]

    def gradient(self, x: Float[Tensor, "b *features"], targets: Targets) -> Float[Tensor, "b *features"]:
        if Needs.GRADIENTS not in self.offers:
            return super().gradient(x, targets)
        found = self._from_clean(x, targets, Ask(), lambda c: c.networks.gradient(x, targets, c.begun))
        if found is not None:
            return found
        self.passes += Cost(forward=len(x), backward=len(x))
        parts = [self.networks.gradient(x[part], targets[part]) for part in self._parts(x)]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def factored_gradient(
        self,
        x: Float[Tensor, "b *features"],
        targets: Targets,
        group: int,
        cuts: int | tuple[str, ...],
        *,
        plain: bool,
    ) -> FactoredGradient:
        if Needs.GRADIENTS not in self.offers:
            return super().factored_gradient(x, targets, group, cuts, plain=plain)
        self.passes += Cost(forward=len(x), backward=len(x) * (1 + plain))
        return self.networks.factored_gradient(x, targets, group, cuts, plain=plain)

    def coefficients(self) -> tuple[Float[Tensor, "k *features"], Float[Tensor, " k"]]:
        if Needs.WEIGHTS not in self.offers:
            return super().coefficients()
        return linear_map(self.net, self.name, self.outputs)

    def fingerprint(self) -> str:
        found = marks(self.replicas.source)
        if self._hashed is None or self._hashed[0] != found:
            if self._hashed is not None and self._hashed[0][0] != found[0]:  # another structure
                for learnt in (self.plain, self.pairs, self.tested, self.layers, self.budget.footprints, self.sound):
                    learnt.clear()
            self._hashed = found, hash_of(self.replicas.source)
        return self._hashed[1]

    def run(self, x: Tensor) -> dict[str, Any]:
        devices = [str(device) for device in self.replicas.devices]
        shape = tuple(x.shape[1:])
        return {
            **super().run(x),
            "device": devices[0] if len(devices) == 1 else devices,
            "precision": "bfloat16" if self.bfloat16 else self._native,
            "memory_limit": self.memory_limit,
            "mode": self.mode,
            "select": self.select,
            "layout": "channels_last" if x.ndim == 4 and shape not in self.plain else "contiguous",
            "threads": torch.get_num_threads(),
            "folded": len(self.pairs.get(self._kind(x), ())),
            **({} if self.settled is None else {"precision_test": self.settled.data()}),
        }

    def take_over(self, run: Mapping[str, Any]) -> None:
        super().take_over(run)
        check_choice("mode", run["mode"], ("eval", "as-is"))
        select = run["select"]
        self.mode, self.select = run["mode"], tuple(select) if isinstance(select, list) else select
        self.recorded = PrecisionTest.of(run)
        half = run["precision"] == "bfloat16" and self.dtype != torch.bfloat16
        self.precision = "auto" if self.recorded is not None else "bfloat16" if half else None

    def _kind(self, x: Tensor) -> Hashable:
        """What is learnt of inputs like x is learnt of their shape and of the type in which the network computes."""
        tail = None if self.tails is None else self.tails.each[0].net
        return (*x.shape[1:], str(self.dtype), self.packing, tail.layer if isinstance(tail, Tail) else None)

    @property
    def _native(self) -> str:
        return str(self.dtype).removeprefix("torch.")

    def predicted_peak(self, x: Inputs, rows: int, *, together: int = 1, maps: int = 1) -> int:
        """The bytes that a call which samples `maps` maps of each of these inputs adds to what there is at its start.

        `rows` go through the network at once, of which `together` cannot be parted: their graph is kept for two
        backward passes. The first time for a shape, passes of one and two rows are measured.
        """
        check_count("rows", rows)
        return self._peaks(self.place(as_input(x).tensor), together, maps)(rows)

    def _fitting(self, x: Tensor, wanted: int, together: int, maps: int) -> int:
        if self.budget.limit is None:
            return wanted
        at_once = wanted if maps else len(x)  # what is not sampled, comes as it is given
        return self.budget.fitting(wanted, together, self._peaks(x, together, maps), self.name, at_once)

    def _peaks(
        self,
        x: Tensor,
        together: int,
        maps: int,
        measure: Callable[[Callable[[Footprint], bool]], Footprint] | None = None,
        about: Hashable = None,
        shared: int = 0,
        beside: bool = False,
    ) -> Callable[[int], int]:
        """The predicted peak of any number of rows. `measure` stands for that of plain passes; it is `about` others."""

        def plainly(two_fit: Callable[[Footprint], bool]) -> Footprint:
            with self.undisturbed(Key.named("memory")) as apart:
                network, row = apart.networks.each[0], apart.place(x[:1])
                found = measured(network, row, gradients=Needs.GRADIENTS in self.offers, two_fit=two_fit)
            self.trials += found.cost
            return found

        return self.budget.peaks(
            x,
            together,
            maps,
            devices=self.replicas.devices,
            weights=self.folded_bytes,
            kind=(self._kind(x), self.bfloat16, self.folded_bytes > 0, about),
            measure=measure or plainly,
            shared=shared,
            beside=beside,
        )

    def _tuned(self, x: Tensor) -> Tuning:
        chosen = [test for (kind, *_), test in self.tested.items() if kind == self._kind(x)]
        half = self.precision == "bfloat16" or (self.precision == "auto" and bool(chosen) and chosen[-1].bfloat16)
        both = half or (self.dtype == torch.float32 and has_bfloat16(self.device))
        models = {self._native: self.in_precision(None)} | ({"bfloat16": self.in_precision("bfloat16")} if both else {})
        limit = self.budget.limit or available(self.device) // 2
        for model in models.values():
            model.budget = self.budget.unlimited()

        def work(rows: int, precision: str) -> None:
            model, copies = models[precision], x.expand(rows, *x.shape[1:])
            model.micro_batch = rows
            if Needs.GRADIENTS in self.offers:
                model.gradient(copies, Targets((ClassScore(0),) * rows, OutputKind.LOGITS))
            else:
                model.outputs(copies)

        def fits(rows: int, precision: str) -> bool:
            return models[precision].predicted_peak(x, rows) <= limit

        in_use = "bfloat16" if half else self._native
        sizes = sizes_up_to(MOST_ROWS * self.width) if fits(2, in_use) else [self.rows(x, maps=1)]
        return tuned(work, sizes=sizes, precisions=tuple(models), fits=fits, in_use=in_use, clock=self.now)

    def now(self) -> float:
        """The clock, once all devices are done."""
        for device in self.replicas.devices:
            if device.type == "cuda":
                torch.cuda.synchronize(device)
        return self.clock()


def _seed(key: Key) -> int:
    return int.from_bytes(key.digest[:8], "little")


def _joined(parts: Sequence[tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
    """The tensors of each place, over all parts."""
    return tuple(each[0] if len(each) == 1 else torch.cat(each) for each in zip(*parts, strict=True))

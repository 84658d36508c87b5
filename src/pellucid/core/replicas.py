"""One network on several devices: copies that follow the user's network, and work done on all at once. For model.py."""

import copy
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from pellucid.core.fingerprint import marks, tensors_of
from pellucid.core.network import Ask, Begun, BiasPass, FactoredGradient, LayerPass, Network
from pellucid.core.rule import RuleBook, RulePass
from pellucid.core.target import Targets
from pellucid.errors import ArgumentError, ModelError

__all__ = ["Networks", "Replicas", "at_once", "devices_of", "divided", "workers"]

T = TypeVar("T")


class Replicas:
    """A network and its copies, one for each device; the first on the network's own device is the network itself.

    What is written into the network's tensors reaches the copies with `follow`, and so does its training mode. Another
    structure is copied anew. Of attributes that are no tensors the copies keep what they were made with.
    """

    def __init__(self, net: nn.Module, devices: Sequence[torch.device]) -> None:
        own = next((tensor.device for _, tensor in tensors_of(net)), torch.device("cpu"))
        self.source = net
        self.devices = tuple(devices) or (own,)
        mine = self.devices.index(own) if own in self.devices else None
        self.nets = [net if i == mine else _copy(net, device) for i, device in enumerate(self.devices)]
        self._marks = marks(net) if self.copies else None

    @property
    def copies(self) -> list[int]:
        """Which of the networks are copies."""
        return [i for i, net in enumerate(self.nets) if net is not self.source]

    def follow(self) -> None:
        """Bring the copies to the state of the user's network, if it has changed since."""
        if not self.copies:
            return
        found = marks(self.source)
        if found != self._marks:
            for i in self.copies:
                if _same_structure(self.source, self.nets[i]):
                    _copy_values(self.source, self.nets[i])
                else:
                    self.nets[i] = _copy(self.source, self.devices[i])
            self._marks = found
        for i in self.copies:
            for ours, theirs in zip(self.source.modules(), self.nets[i].modules(), strict=True):
                if getattr(ours, "training", None) != getattr(theirs, "training", None):
                    theirs.training = ours.training


def devices_of(names: Any) -> list[torch.device]:
    """The devices of a name or of several; none of None.

    Raises:
        ArgumentError: this machine has no such device, or an empty list was given.
    """
    if names is None:
        return []
    if isinstance(names, list | tuple):
        if not names:
            raise ArgumentError("`device` is one or several of this machine, such as 'cuda:0'. Got none of them.")
        return [_device(name) for name in names]
    return [_device(names)]


def _device(name: Any) -> torch.device:
    try:
        return torch.empty(0, device=torch.device(name)).device
    except (RuntimeError, AssertionError, TypeError) as error:  # torch asserts that CUDA was compiled in
        reason = str(error).partition("\n")[0]
        raise ArgumentError(
            f"`device` is one of this machine, such as cpu or cuda, or a tuple of them. Got {name!r}: {reason}"
        ) from error


@dataclass(frozen=True, eq=False)
class Networks:
    """Networks that share the rows of each micro-batch. Results are gathered on the first one's device, in order."""

    each: Sequence[Network]
    pool: ThreadPoolExecutor | None

    def outputs(self, x: Tensor) -> Tensor:
        """The outputs (B, K), without gradients."""
        return self._gathered(self._shared(divided(len(x), len(self.each)), lambda one, rows: one.outputs(x[rows])))

    def begin(self, x: Tensor, ask: Ask) -> list[Begun]:
        """Passes up to the outputs, one for each network's share of the rows."""
        return self._shared(divided(len(x), len(self.each)), lambda one, rows: one.begin(x[rows], ask))

    def outputs_of(self, begun: Sequence[Begun]) -> Tensor:
        """The outputs of passes that were begun."""
        return self._gathered([part.outputs.detach() for part in begun])

    def gradient(self, x: Tensor, targets: Targets, begun: Sequence[Begun] = ()) -> Tensor:
        """The gradient of each row's target with respect to that row."""

        def share(network: Network, rows: slice) -> Tensor:
            return network.gradient(x[rows], targets[rows], self._of(network, begun))

        return self._gathered(self._shared(divided(len(x), len(self.each)), share))

    def scores(self, x: Tensor, targets: Targets) -> Tensor:
        """Each row's target, without gradients."""
        shares = divided(len(x), len(self.each))
        return self._gathered(self._shared(shares, lambda one, rows: one.scores(x[rows], targets[rows])))

    def layer_pass(self, x: Tensor, targets: Targets, ask: Ask, begun: Sequence[Begun] = ()) -> LayerPass:
        """What layers give, and the gradients by it."""

        def share(network: Network, rows: slice) -> LayerPass:
            return network.layer_pass(x[rows], targets[rows], ask, self._of(network, begun))

        parts = self._shared(divided(len(x), len(self.each)), share)
        return LayerPass(
            self._each([part.activations for part in parts]),
            self._each([part.gradients for part in parts]),
            self._gathered([part.scores for part in parts]),
        )

    def bias_pass(self, x: Tensor, targets: Targets, begun: Sequence[Begun] = ()) -> BiasPass:
        """The gradient, and each bias times the gradient where it is added."""

        def share(network: Network, rows: slice) -> BiasPass:
            return network.bias_pass(x[rows], targets[rows], self._of(network, begun))

        parts = self._shared(divided(len(x), len(self.each)), share)
        return BiasPass(
            self._gathered([part.gradient for part in parts]),
            self._each([part.biases for part in parts]),
            self._gathered([part.scores for part in parts]),
        )

    def rule_pass(
        self,
        x: Tensor,
        targets: Targets,
        book: RuleBook,
        beside: Tensor | None = None,
        begun: list[Begun] | None = None,
    ) -> RulePass:
        """What reaches the input by rules in place of derivatives. Passes are taken out of the list `begun`, so that
        what is gone through is let go of.
        """
        waiting = dict(zip(self.each, begun or (), strict=False))
        if begun is not None:
            begun.clear()

        def share(network: Network, rows: slice) -> RulePass:
            others = None if beside is None else beside[rows]
            return network.rule_pass(x[rows], targets[rows], book, others, waiting.pop(network, None))

        return RulePass.joined(self._shared(divided(len(x), len(self.each)), share), self._gathered)

    def tail(self, layer: str, x: Tensor, rows: int) -> "Networks":
        """The networks from this layer on."""
        return Networks([network.tail(layer, x, rows) for network in self.each], self.pool)

    def _of(self, network: Network, begun: Sequence[Begun]) -> Begun | None:
        return begun[self.each.index(network)] if begun else None

    def _each(self, parts: Sequence[tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
        return tuple(self._gathered(each) for each in zip(*parts, strict=True))

    def factored_gradient(
        self, x: Tensor, targets: Targets, group: int, cuts: int | tuple[str, ...], *, plain: bool
    ) -> FactoredGradient:
        """The same with its factors averaged apart; whole groups go to one network."""

        def share(network: Network, rows: slice) -> FactoredGradient:
            return network.factored_gradient(x[rows], targets[rows], group, cuts, plain=plain)

        parts = self._shared(divided(len(x), len(self.each), group), share)
        beside = [part.plain for part in parts if part.plain is not None]
        factored = self._gathered([part.factored for part in parts])
        return FactoredGradient(factored, self._gathered(beside) if plain else None, parts[0].cuts)

    def _shared(self, shares: Sequence[slice], job: Callable[[Network, slice], T]) -> list[T]:
        jobs = [partial(job, network, rows) for network, rows in zip(self.each, shares, strict=False)]
        return [job() for job in jobs] if self.pool is None else at_once(self.pool, jobs)

    def _gathered(self, parts: Sequence[Tensor]) -> Tensor:
        return parts[0] if len(parts) == 1 else torch.cat([part.to(self.each[0].device) for part in parts])


def divided(rows: int, among: int, group: int = 1) -> list[slice]:
    """Neighbouring chunks of whole groups, as equal as can be; fewer than `among` where there are not enough."""
    share = -(-(rows // group) // among) * group
    return [slice(start, min(start + share, rows)) for start in range(0, rows, max(share, 1))]


def workers(count: int) -> ThreadPoolExecutor:
    """Threads that compute as this one does."""
    return ThreadPoolExecutor(
        count, "pellucid-device", initializer=torch.set_num_threads, initargs=(torch.get_num_threads(),)
    )


def at_once(pool: ThreadPoolExecutor, jobs: Sequence[Callable[[], T]]) -> list[T]:
    """Each job on a thread of its own. When this returns, or raises the first job's error, all have ended."""

    def outside_inference(job: Callable[[], T]) -> T:  # the mode is each thread's own
        with torch.inference_mode(False):
            return job()

    running = [pool.submit(outside_inference, job) for job in jobs]
    wait(running)
    return [future.result() for future in running]


def _copy(net: nn.Module, device: torch.device) -> nn.Module:
    try:
        with torch.inference_mode(False):
            return copy.deepcopy(net).to(device)
    except Exception as error:  # whatever a stranger's network holds
        raise ModelError(
            f"{type(net).__name__} cannot be copied to {device}: {error}. Move it there, and leave out `device`."
        ) from error


def _same_structure(net: nn.Module, other: nn.Module) -> bool:
    """Whether values can be written from one into the other."""
    if repr(net) != repr(other):
        return False
    kinds, others = ([(n, t.shape, t.dtype, _expanded(t)) for n, t in tensors_of(one)] for one in (net, other))
    return kinds == others and not any(expanded for *_, expanded in others)


def _expanded(tensor: Tensor) -> bool:
    """Whether one place in memory serves several elements, so that it cannot be written to."""
    return any(step == 0 and size > 1 for step, size in zip(tensor.stride(), tensor.shape, strict=True))


def _copy_values(net: nn.Module, other: nn.Module) -> None:
    with torch.inference_mode(False), torch.no_grad():
        for (_, value), (_, place) in zip(tensors_of(net), tensors_of(other), strict=True):
            place.copy_(value)

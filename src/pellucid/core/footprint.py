"""The memory of a pass through a network, as a line through the peaks of passes of one and two rows.

Counted are the storages that operations make, for as long as they live. What operations use in between is not seen, but
for the one case in which it is many times what they give: a convolution on the CPU that oneDNN does not take.
"""

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from pellucid.core.card import Cost
from pellucid.core.network import Network
from pellucid.core.prediction import OutputKind
from pellucid.core.rule import RuleBook
from pellucid.core.target import ClassScore, Targets

__all__ = ["Footprint", "LiveBytes", "measured", "measured_by_rules"]


@dataclass(frozen=True)
class Footprint:
    """Peaks of live bytes of passes through a network: `fixed` + n `row` for n rows.

    `kept` are those of two backward passes, before the last of which the whole graph is kept. `rows` is the most rows
    that were measured; of one alone, `fixed` is 0 and the line is an upper bound. `cost` is what measuring took.
    """

    fixed: int
    row: int
    kept_fixed: int
    kept_row: int
    rows: int
    cost: Cost

    def live(self, rows: int, *, kept: bool) -> int:
        """The live bytes of a pass of so many rows."""
        fixed, row = (self.kept_fixed, self.kept_row) if kept else (self.fixed, self.row)
        return fixed + rows * row


def measured(network: Network, x: Tensor, *, gradients: bool, two_fit: Callable[[Footprint], bool]) -> Footprint:
    """The footprint of rows like the first of x; of it alone where, by its footprint, two may not fit."""
    row = x[:1]
    network.outputs(row)  # what a network does once, in its first pass, is not measured
    one = _peaks(network, row, gradients=gradients)
    alone = Footprint(0, one[0], 0, one[1], rows=1, cost=Cost(forward=2, backward=2 * gradients))
    if not two_fit(alone):
        return alone
    both = _peaks(network, torch.cat([row, row]), gradients=gradients)
    return _through(one, both, Cost(forward=4, backward=6 * gradients))


def measured_by_rules(
    network: Network,
    x: Tensor,
    target: Targets,
    book: RuleBook,
    beside: Tensor | None = None,
    *,
    two_fit: Callable[[Footprint], bool],
) -> Footprint:
    """The same of passes by rules, which keep what autograd does not; one of the rows `beside` goes with each."""
    row, other = x[:1], None if beside is None else beside[:1]
    cost = Cost(forward=1 + (other is not None), backward=1)
    one = _peak_by_rules(network, row, target, book, other)
    alone = Footprint(0, one, 0, one, rows=1, cost=cost)
    if not two_fit(alone):
        return alone
    twice = Targets(target.each * 2, target.kind)
    others = None if other is None else torch.cat([other, other])
    both = _peak_by_rules(network, torch.cat([row, row]), twice, book, others)
    return _through((one, one), (both, both), cost + cost + cost)


def _through(one: tuple[int, int], two: tuple[int, int], cost: Cost) -> Footprint:
    """The lines through the peaks of one row and of two."""
    (fixed, each), (kept_fixed, kept_each) = (_line(*peaks) for peaks in zip(one, two, strict=True))
    return Footprint(fixed, each, kept_fixed, kept_each, rows=2, cost=cost)


def _line(one: int, two: int) -> tuple[int, int]:
    row = max(two - one, 0)
    return max(one - row, 0), row


def _peaks(network: Network, x: Tensor, *, gradients: bool) -> tuple[int, int]:
    """The most bytes that live at once in a pass there and back, and in one back with the graph kept and one more."""
    with _uncompiled(), LiveBytes() as live:
        if not gradients:
            network.outputs(x)
            return live.peak, live.peak
        leaf, score = network.scored(x, Targets((ClassScore(0),) * len(x), OutputKind.LOGITS))
        if not score.requires_grad:
            return live.peak, live.peak
        forward, live.peak = live.peak, 0
        first = network.backward(leaf, score, keep=True)
        kept, live.peak = live.peak, 0
        # The second pass frees the graph as it goes; what the first one left is not part of it.
        network.backward(leaf, score)
        once = live.peak - first.untyped_storage().nbytes()
        return max(forward, once), max(forward, kept, live.peak)


def _peak_by_rules(network: Network, x: Tensor, targets: Targets, book: RuleBook, beside: Tensor | None) -> int:
    with _uncompiled(), LiveBytes() as live:
        network.rule_pass(x, targets, book, beside)
    return int(live.peak)


def _uncompiled() -> AbstractContextManager[Any]:
    """Compiled networks run as they are written within: where it is loaded, torch's compiler takes the counting too."""
    return torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()


class LiveBytes(TorchDispatchMode):
    """The bytes of the storages that operations within make, for as long as they live; `peak` is the most at once."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak = 0
        self._sizes: dict[StorageWeakRef, int] = {}  # 0 for those that were there before

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # Otherwise torch imports its compiler, to keep it out of here: a second, and 70 MB. See `_uncompiled`.
        return False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        for tensor in _tensors((args, kwargs)):
            self._sizes.setdefault(_reference(tensor), 0)
        result = func(*args, **(kwargs or {}))
        for tensor in _tensors(result):
            self._sizes.setdefault(_reference(tensor), tensor.untyped_storage().nbytes())
        self.peak = max(self.peak, self.live() + _columns(func, args))
        return result

    def live(self) -> int:
        """The bytes that live now."""
        for storage in [storage for storage in self._sizes if storage.expired()]:
            del self._sizes[storage]
        return sum(self._sizes.values())


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, Tensor) and leaf.layout == torch.strided]


def _reference(tensor: Tensor) -> StorageWeakRef:
    return StorageWeakRef(tensor.untyped_storage())


def _columns(func: Any, args: tuple[Any, ...]) -> int:
    """The bytes into which a convolution on the CPU unfolds its input where oneDNN does not take it: k x k times it."""
    if func is torch.ops.aten.convolution.default:
        x, weight, stride, pad, dilation = args[0], args[1], *args[3:6]
        transposed = args[6]
    elif func is torch.ops.aten.convolution_backward.default:
        x, weight, stride, pad, dilation = args[1], args[2], *args[4:7]
        transposed = args[7]
    else:
        return 0
    kernel = weight.shape[2:]
    if x.device.type != "cpu" or transposed or _onednn_takes(x.dtype) or all(side == 1 for side in kernel):
        return 0
    places = len(x) * x.element_size() * weight.shape[1]
    for side, k, s, p, d in zip(x.shape[2:], kernel, stride, pad, dilation, strict=True):
        places *= k * ((side + 2 * p - d * (k - 1) - 1) // s + 1)
    return int(places)


def _onednn_takes(dtype: torch.dtype) -> bool:
    if not (torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled):
        return False
    if dtype in (torch.bfloat16, torch.float16):
        ops = torch.ops.mkldnn
        half = ops._is_mkldnn_bf16_supported if dtype == torch.bfloat16 else ops._is_mkldnn_fp16_supported  # noqa: SLF001
        return bool(half())
    return dtype == torch.float32

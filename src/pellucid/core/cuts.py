"""Where a network can be cut in two, found in the graph that autograd recorded. Used by model.py alone.

A separator is a tensor that every path from the input to the score passes. A cut is a separator at which the map's
resolution is about to change; there the gradient is replaced by its mean over a group of rows. Since the graph is that
of the executed operations, functional calls, shared modules and exported programs are cut like any other network.

The rule: cut after a max-pool and before every other operation that lowers the resolution, there at the narrowest
tensor that is one activation away at most; not where all that lies before is linear, which a mean would not change; the
last few such places. After, not before a max-pool: which of its inputs won goes with the activations before it.
"""

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pellucid.errors import CutError

__all__ = ["Cut", "at_once", "averaged", "description", "find_cuts", "is_pool", "named_cut", "separators"]

_INSTEAD = "Take estimator=Shrunk() or Mean(), which need no cut"

# Operations by the names of their gradients. Linear ones commute with a mean.
_LINEAR = {"AccumulateGrad", "Add", "Addmm", "Alias", "AsStrided", "Cat", "Clone", "ConstantPadNd", "Convolution",
           "ConvolutionOverrideable", "Contiguous", "CudnnBatchNorm", "CudnnConvolution", "Expand", "Flatten", "Index",
           "IndexSelect", "MiopenBatchNorm", "MiopenConvolution", "MkldnnConvolution", "Mean", "Mm", "NativeBatchNorm",
           "Narrow", "Neg", "Permute", "PixelShuffle", "PixelUnshuffle", "Repeat", "Reshape", "Roll", "Select",
           "SlowConv2D", "Slice", "Split", "SplitWithSizes", "Squeeze", "Stack", "Sub", "Sum", "T", "ThnnConv2D",
           "ToCopy", "Transpose", "Unbind", "Unfold", "Unsqueeze", "UnsafeView", "View", "ViewAs", "Im2Col",
           "Col2Im", "Bmm", "Mul"}  # fmt: skip
_LINEAR_FAMILIES = (
    "AvgPool",
    "AdaptiveAvgPool",
    "MkldnnAdaptiveAvgPool",
    "ReflectionPad",
    "ReplicationPad",
    "Upsample",
)
# Products are linear if one operand alone depends on the input.
_PRODUCTS = {"Mul", "Bmm", "Baddbmm", "Mm", "Addmm"}
# Of several operands that depend on the input these take sums or choose; what else has several multiplies them.
_SUMS = {"Add", "AsStridedScatter", "Cat", "CopySlices", "IndexAdd", "IndexCopy", "IndexPut", "MaskedScatter",
         "Maximum", "Minimum", "Scatter", "ScatterAdd", "SelectScatter", "SliceScatter", "Stack", "Sub",
         "Where"}  # fmt: skip
_GATES = {"Glu"}  # of one operand, whose halves are multiplied
_POOLS = ("MaxPool", "AdaptiveMaxPool", "AvgPool", "AdaptiveAvgPool", "MkldnnAdaptiveAvgPool")
_ATTENTION = ("ScaledDotProduct", "EfficientAttention", "FlashAttention", "NativeMultiHeadAttention")
_POINTWISE = {"Abs", "Add", "Clamp", "ClampMax", "ClampMin", "Clone", "Div", "Erf", "Exp", "Hardsigmoid", "Hardtanh",
              "Log", "Log1P", "Mul", "Neg", "Pow", "Relu", "Sigmoid", "Softplus", "Sqrt", "Sub", "Tanh", "Threshold",
              "ToCopy"}  # fmt: skip
_MOVED_AXES = {"Permute", "Transpose", "NativeLayerNorm", "View", "Reshape", "UnsafeView"}
_FALLEN = 0.75  # of the resolution; padding by a pixel or two is no change

Node = Any
"""A node of the autograd graph; torch names no public type for it."""


class Cut(NamedTuple):
    """A tensor in the graph: the node that gave it, and which of the node's outputs it is."""

    node: Node
    output: int = 0

    @property
    def words(self) -> str:
        """The operation and the shape of what it gave for one row."""
        return f"{_name(self.node)} {'x'.join(map(str, self.shape[1:]))}"

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the tensor."""
        return tuple(self.node._input_metadata[self.output].shape)  # noqa: SLF001  # torch has no public name for it


def find_cuts(score: Tensor, rows: int, count: int) -> list[Cut]:
    """The last `count` places to cut, from the input to the score.

    Raises:
        CutError: there is none, or the network multiplies activations with each other.
    """
    order, separators = _separators(score)
    for node in order:
        _refuse_products(node)
    maps = [node for node in separators if _is_map(node, rows)]
    found: list[Node] = []
    for before, after in itertools.pairwise(maps):
        if not _falls(_shape(before), _shape(after)):
            continue
        pool = _name(after).startswith(("MaxPool", "AdaptiveMaxPool"))
        places = [
            node for node in ([after] if pool else _near(before, maps)) if not all(map(_is_linear, _upstream(node)))
        ]
        if places and (cut := min(places, key=_size)) not in found:
            found.append(cut)
    if not found:
        raise CutError(
            "The network has no place to be cut: its resolution falls nowhere after a nonlinear operation, or not "
            f"where all paths meet. {_INSTEAD}, or name modules, Factored(cuts=('layer1', ...))."
        )
    return [Cut(node) for node in found[-count:]]


def at_once(output: Any) -> Cut | None:
    """Where a module's output stands in the graph, before anything is written to it; None if it does not."""
    if not isinstance(output, Tensor) or output.grad_fn is None:
        return None
    return Cut(output.grad_fn, output.output_nr)


def named_cut(name: str, outputs: Sequence[Cut | None], rows: int, score: Tensor) -> Cut:
    """The cut at a module's output.

    Raises:
        CutError: the module ran not once, or gave no tensor that depends on the input, or one on which the score does
            not depend, or that is not of rows.
    """
    if len(outputs) != 1:
        raise CutError(f"A cut is a module that runs once, but {name} ran {len(outputs)} times. Name another.")
    [cut] = outputs
    if cut is None:
        raise CutError(f"A cut is a tensor that depends on the input, but {name} gave none. Name another module.")
    if not any(node is cut.node for node in _upstream(score.grad_fn)):
        raise CutError(f"A cut is a tensor that the explained score depends on, but not on {name}. Name another.")
    if not cut.shape or cut.shape[0] != rows:
        raise CutError(
            f"A cut is a tensor with one row for each of {rows} samples, but {name} gave {cut.shape}. Name another."
        )
    return cut


def separators(score: Tensor) -> list[Node]:
    """The nodes that every path from the input to the score passes, in that order."""
    return _separators(score)[1]


def is_pool(node: Node) -> bool:
    """Whether the operation pools neighbouring cells."""
    return _name(node).startswith(_POOLS)


@contextmanager
def averaged(cuts: Sequence[Cut], group: int) -> Iterator[None]:
    """Backward passes within replace the gradient at each cut by its mean over each `group` of neighbouring rows."""

    def over_groups(cut: Cut, gradients: tuple[Tensor | None, ...]) -> tuple[Tensor | None, ...]:
        return tuple(
            _mean(gradient, group) if i == cut.output and gradient is not None else gradient
            for i, gradient in enumerate(gradients)
        )

    handles = [cut.node.register_prehook(partial(over_groups, cut)) for cut in cuts]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _mean(gradient: Tensor, group: int) -> Tensor:
    rows = gradient.unflatten(0, (-1, group))
    mean = rows.mean(1, keepdim=True, dtype=torch.promote_types(rows.dtype, torch.float32)).to(rows.dtype)
    whole: Tensor = mean.expand_as(rows).flatten(0, 1)
    return whole.contiguous(memory_format=_layout(gradient))


def description(cuts: Sequence[Cut]) -> str:
    """Where a network was cut, in words: operation and shape."""
    return ", ".join(cut.words for cut in cuts)


def _layout(x: Tensor) -> torch.memory_format:
    nhwc = x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if nhwc else torch.contiguous_format


def _separators(score: Tensor) -> tuple[list[Node], list[Node]]:
    """All nodes, and those that every path passes, each from the input to the score (Kahn's order)."""
    waiting: dict[Node, int] = {}
    stack, seen = [score.grad_fn], {score.grad_fn}
    while stack:
        for child in _before(stack.pop()):
            waiting[child] = waiting.get(child, 0) + 1
            if child not in seen:
                seen.add(child)
                stack.append(child)
    order, separators = [], []
    ready, open_ = [score.grad_fn], {score.grad_fn}
    while ready:
        node = ready.pop()
        if len(open_) == 1:
            separators.append(node)
        open_.discard(node)
        order.append(node)
        for child in _before(node):
            waiting[child] -= 1
            open_.add(child)
            if not waiting[child]:
                ready.append(child)
    return order[::-1], separators[::-1]


def _upstream(node: Node) -> Iterator[Node]:
    """The node and all that it was computed from."""
    stack, seen = [node], {node}
    while stack:
        current = stack.pop()
        yield current
        for child in _before(current):
            if child not in seen:
                seen.add(child)
                stack.append(child)


def _before(node: Node) -> list[Node]:
    return [child for child, _ in node.next_functions if child is not None]


def _name(node: Node) -> str:
    return str(node.name()).rpartition("::")[2].partition("Backward")[0]  # without the version of the operator


def _shape(node: Node) -> tuple[int, ...]:
    metadata = node._input_metadata  # noqa: SLF001  # the shapes of what the forward operation gave
    return tuple(metadata[0].shape) if len(metadata) == 1 else ()


def _is_map(node: Node, rows: int) -> bool:
    shape = _shape(node)
    return len(shape) >= 3 and shape[0] == rows and _name(node) not in _MOVED_AXES


def _falls(before: tuple[int, ...], after: tuple[int, ...]) -> bool:
    if len(before) != len(after) or all(side == 1 for side in after[2:]):  # the global pool at the end
        return False
    return any(new < _FALLEN * old for old, new in zip(before[2:], after[2:], strict=True))


def _is_linear(node: Node) -> bool:
    name = _name(node)
    if name in _PRODUCTS:
        return len(_before(node)) == 1
    if name == "Div":  # by something that does not depend on the input
        return node.next_functions[1][0] is None
    return name in _LINEAR or name.startswith(_LINEAR_FAMILIES)


def _near(last: Node, maps: Sequence[Node]) -> list[Node]:
    """The separators at most one activation before `last`, at its resolution; the last comes first."""
    separators = set(maps)
    found, node, bends = [last], last, 0
    while True:
        bends += not _is_linear(node)
        inputs = _before(node)
        if bends > 1 or len(inputs) != 1 or inputs[0] not in separators or _falls(_shape(inputs[0]), _shape(node)):
            return found
        [node] = inputs
        found.append(node)


def _size(node: Node) -> int:
    return torch.Size(_shape(node)).numel()


def _refuse_products(node: Node) -> None:
    name, inputs = _name(node), _before(node)
    softmax_inside = name.startswith("Softmax") and len(_shape(node)) > 2
    if name.startswith(_ATTENTION) or softmax_inside or (name in _PRODUCTS - {"Mul"} and len(inputs) > 1):
        raise CutError(
            "The network has attention, whose factors do not average apart: measured, scores of tokens became worse. "
            f"{_INSTEAD}."
        )
    gate = name in _GATES or "Rnn" in name or (name not in _SUMS and len(inputs) > 1)
    if gate and not (len(inputs) > 1 and set.intersection(*map(_pointwise_roots, inputs))):
        raise CutError(
            "The network multiplies activations with each other (a gate, such as squeeze-and-excitation), for which "
            f"the bias of a cut was not measured. {_INSTEAD}, or name modules, Factored(cuts=('layer1', ...))."
        )


def _pointwise_roots(node: Node) -> set[Node]:
    """The node and those of which it is a function element by element: x * sigmoid(x) is an activation, not a gate."""
    found = {node}
    while _name(node) in _POINTWISE and len(inputs := _before(node)) == 1 and _shape(inputs[0]) == _shape(node):
        [node] = inputs
        found.add(node)
    return found

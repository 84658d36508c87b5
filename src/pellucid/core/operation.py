"""Kinds of operations, as rules of relevance tell them apart, and one operation that a network executed.

Below autograd, torch has about two thousand operations; each spelling of a function ends in the same few of them
(`nn.ReLU`, `F.relu` and `x.relu_()` in relu; `clamp(min=0)` in clamp). A kind says what part of the mathematics an
operation is, given which of its operands depend on the network's input: x + 1 shifts, x + y adds.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from torch import Tensor

__all__ = ["Cell", "Edge", "Kind", "Operand", "Operation", "kind_of"]

Edge = tuple[Any, int]
"""A node of autograd's graph, and which of its outputs."""


class Kind(StrEnum):
    """What an operation is. All but RECTIFIER to OTHER are linear in the operands that depend on the input."""

    LAYOUT = "layout"
    """Numbers move, are copied, or are left out: view, cat, pad, slice."""

    AFFINE = "affine"
    """Sums weighted by numbers that do not depend on the input: convolution, linear, matrix product."""

    SCALE = "scale"
    """Each number is multiplied, shifted or both by others that do not depend on the input: batch norm, x * 2 + 1."""

    SUM = "sum"
    """Sums and means over places: average pooling, mean, bilinear enlargement."""

    ADD = "add"
    """Sums and differences of several operands that depend on the input."""

    MAX = "max"
    """The largest of several: max pooling, amax."""

    RECTIFIER = "rectifier"
    """Zero below zero, x above, up to a bound if any: relu, relu6, clamp."""

    ACTIVATION = "activation"
    """Another function of each number."""

    PRODUCT = "product"
    """Products and quotients, number by number, of operands that depend on the input."""

    MATMUL = "matrix product"
    """A matrix product of operands that both depend on the input."""

    SOFTMAX = "softmax"
    NORM = "norm"
    """Layer, group and RMS norm: divided by a spread that depends on the input."""

    RECURRENT = "recurrent"
    """A whole recurrent layer in one operation."""

    OTHER = "other"


def _names(words: str) -> frozenset[str]:
    return frozenset(words.split())


_KINDS = {
    Kind.LAYOUT: _names(
        "view _unsafe_view reshape _reshape_alias permute transpose t mT expand squeeze unsqueeze clone _to_copy "
        "copy cat stack slice select narrow split split_with_sizes unsafe_split unsafe_split_with_sizes chunk "
        "unsafe_chunk unbind alias index index_select gather take roll flip rot90 constant_pad_nd reflection_pad1d "
        "reflection_pad2d reflection_pad3d replication_pad1d replication_pad2d replication_pad3d pixel_shuffle "
        "pixel_unshuffle channel_shuffle native_channel_shuffle repeat tile diagonal diag_embed tril triu "
        "masked_fill as_strided unfold im2col lift_fresh movedim masked_select detach_copy view_as contiguous "
        "slice_backward select_backward"
    ),
    Kind.SUM: _names(
        "mean sum cumsum trace avg_pool1d avg_pool2d avg_pool3d _adaptive_avg_pool2d _adaptive_avg_pool3d "
        "adaptive_avg_pool1d upsample_nearest1d upsample_nearest2d upsample_nearest3d upsample_linear1d "
        "upsample_bilinear2d upsample_trilinear3d upsample_bicubic2d _upsample_nearest_exact1d "
        "_upsample_nearest_exact2d "
        "_upsample_bilinear2d_aa col2im"
    ),
    Kind.MAX: _names(
        "max_pool2d_with_indices max_pool3d_with_indices adaptive_max_pool2d adaptive_max_pool3d amax max amin min "
        "maximum minimum topk sort cummax kthvalue"
    ),
    Kind.SCALE: _names(
        "native_batch_norm _native_batch_norm_legit_no_training cudnn_batch_norm miopen_batch_norm "
        "_batch_norm_with_update batch_norm_elemt neg"
    ),
    Kind.RECTIFIER: _names("relu relu6 hardtanh clamp clamp_min threshold"),
    Kind.ACTIVATION: _names(
        "gelu silu sigmoid tanh elu hardswish hardsigmoid softplus mish exp log log1p log2 log10 expm1 pow sqrt rsqrt "
        "abs sin cos tan erf reciprocal log_sigmoid_forward _prelu_kernel leaky_relu rrelu_with_noise square "
        "clamp_max softshrink hardshrink sinh cosh atan asinh sign celu selu exp2 logit"
    ),
    Kind.SOFTMAX: _names("_softmax _safe_softmax _log_softmax"),
    Kind.NORM: _names("native_layer_norm native_group_norm _fused_rms_norm"),
    Kind.RECURRENT: _names("mkldnn_rnn_layer _cudnn_rnn _thnn_fused_lstm_cell _thnn_fused_gru_cell lstm gru"),
}
_BY_NAME = {name: kind for kind, names in _KINDS.items() for name in names}
_MATRICES = _names("mm bmm mv dot addmm baddbmm")
_CONVOLUTIONS = _names("convolution _convolution")
_BATCH_NORMS = _names("native_batch_norm cudnn_batch_norm miopen_batch_norm")
_SUMS = _names("add sub rsub")
_PRODUCTS = _names("mul div addcmul addcdiv")


@dataclass(eq=False)
class Cell:
    """A value that is kept as it was, whatever is written in place later."""

    value: Tensor


@dataclass(frozen=True, eq=False)
class Operand:
    """What an operation takes that depends on the input: at which place of its arguments, and where it came from.

    `edge` is the node that made it, with the number of that node's output; `value` is kept where it was asked for.
    """

    at: int
    edge: Edge
    shape: tuple[int, ...]
    cell: Cell | None

    @property
    def value(self) -> Tensor:
        """What it was; only where the rules asked for it."""
        assert self.cell is not None  # noqa: S101  # the rule's own `keeps` says what it needs
        return self.cell.value


@dataclass(frozen=True, eq=False)
class Operation:
    """One operation that was executed. `module` is the module that ran it, `args` what it took besides `operands`;
    `ends` says whether the target takes what it gave.
    """

    kind: Kind
    what: str
    module: str
    node: Any
    operands: tuple[Operand, ...]
    args: tuple[Any, ...]
    shape: tuple[int, ...]
    cell: Cell | None
    ends: bool = False

    @property
    def output(self) -> Tensor:
        """What it gave; only where the rules asked for it."""
        assert self.cell is not None  # noqa: S101  # as `Operand.value`
        return self.cell.value


def kind_of(name: str, dependent: Sequence[bool], args: Sequence[Any]) -> Kind:
    """The kind of the operation aten::`name`, whose tensor operands depend on the input or do not."""
    several = sum(dependent) > 1
    if name in _CONVOLUTIONS:
        return Kind.OTHER if several or not dependent[0] else Kind.AFFINE
    if name in _MATRICES:
        adds = name.startswith(("add", "badd"))
        if adds and (dependent[0] or tuple(args[3:5]) != (1, 1)):
            return Kind.OTHER
        return Kind.AFFINE if not several else Kind.OTHER if adds else Kind.MATMUL
    if name in _BATCH_NORMS and (args[5] or args[3] is None):
        return Kind.NORM  # of the numbers at hand, as instance norm is
    if name in _SUMS:
        return Kind.ADD if several else Kind.SCALE
    if name == "div" and len(args) > 2 and args[2] is not None:  # rounded
        return Kind.OTHER
    if name in _PRODUCTS:
        if several or (name == "div" and not dependent[0]) or name.startswith("addc"):
            return Kind.PRODUCT
        return Kind.SCALE
    if name == "where":
        return Kind.LAYOUT
    if name in ("maximum", "minimum") and not several:
        return Kind.ACTIVATION
    kind = _BY_NAME.get(name, Kind.OTHER)
    return Kind.ACTIVATION if kind is Kind.RECTIFIER and not _from_zero(name, args) else kind


def _from_zero(name: str, args: Sequence[Any]) -> bool:
    """Whether what bounds numbers gives zero below zero, and begins to rise there."""
    if name in ("relu", "relu6"):
        return True
    bounds = args[1:3] if name == "threshold" else args[1:2]
    return all(not isinstance(bound, Tensor) and bound == 0 for bound in bounds)

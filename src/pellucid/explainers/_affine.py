"""Weighted sums that a network executed, z = W x + b, for rules that give other weights to what goes through them.

A batch norm after a convolution, or a constant added to a matrix product, belong to the sum: what is written as one
module, as two or with functions is the same sum.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from pellucid.core.executed import derivative
from pellucid.core.operation import Kind, Operation

__all__ = ["Affine", "sums"]

_NORMS = ("native_batch_norm", "_native_batch_norm_legit_no_training", "cudnn_batch_norm", "miopen_batch_norm")
_REARRANGED = ("view", "_unsafe_view", "permute")
_KEEP_SIGNS = ("max_pool2d_with_indices", "avg_pool2d", "_adaptive_avg_pool2d", "mean", "view", "_unsafe_view",
               "permute")  # fmt: skip
_MATRICES = ("mm", "bmm", "mv", "dot", "addmm", "baddbmm")


@dataclass(frozen=True, eq=False)
class Affine:
    """One sum: the operation that multiplies, and those after it that scale, shift and rearrange what it gave.

    `rising` says that x is known not to be negative, `rectified` that nothing but rectifiers takes what it gives, so
    that no message reaches a negative sum.
    """

    operation: Operation
    after: tuple[Operation, ...] = ()
    rising: bool = False
    rectified: bool = False

    @property
    def last(self) -> Operation:
        """The operation that gives z."""
        return self.after[-1] if self.after else self.operation

    @property
    def is_convolution(self) -> bool:
        """Whether it is a convolution, and no matrix product."""
        return self.operation.what not in _MATRICES

    @property
    def x(self) -> Tensor:
        """What the sum is taken of."""
        return self.operation.operands[0].value

    @property
    def together(self) -> bool:
        """Whether two sets of weights, one behind the other, give both sums one behind the other."""
        return self.is_convolution and not self.operation.args[6] and self.operation.args[8] == 1

    @cached_property
    def signs(self) -> tuple[Tensor, Tensor | None]:
        """What of x is positive, and what is negative, if anything is."""
        x = self.x
        if self.rising or not bool(x.min() < 0):
            return x, None
        return x.clamp(min=0), x.clamp(max=0)

    @cached_property
    def z(self) -> Tensor:
        """What it gives, laid out as what is multiplied."""
        return self.at_the_product(self.last.output)

    def at_the_product(self, t: Tensor) -> Tensor:
        """Numbers of what the sum gives, laid out as what is multiplied."""
        for one in reversed(self.after):
            if one.kind is Kind.LAYOUT:  # numbers only move, so that the derivative moves them back
                [(_, t, _)] = derivative(one, [t])
        return t

    @cached_property
    def _gain_and_shift(self) -> tuple[Tensor | None, Tensor | None]:
        """What multiplies each channel of the sum, and what is added to it."""
        gain, shift = None, self._own_bias
        for one in self.after:
            if one.kind is Kind.LAYOUT:
                continue
            times, plus = _norm(one) if one.what in _NORMS else (None, _constant(one))
            if times is not None:
                gain = times if gain is None else gain * times
                shift = None if shift is None else shift * times
            plus = -plus if one.what == "sub" else plus
            shift = plus if shift is None else shift + plus
        return gain, shift

    @property
    def _own_bias(self) -> Tensor | None:
        args = self.operation.args
        if self.is_convolution:
            bias = args[2]
            return None if bias is None else bias.view(-1, *(1,) * (len(self.operation.shape) - 2))
        return args[0] if self.operation.what in ("addmm", "baddbmm") else None

    @cached_property
    def weight(self) -> Tensor:
        """The weights of the whole sum."""
        gain, _ = self._gain_and_shift
        at = self.operation.operands[0].at
        own: Tensor = self.operation.args[1 if self.is_convolution else at + 1 if _is_left(self.operation) else at - 1]
        if gain is None:
            return own
        flat = gain.flatten()
        if not self.is_convolution:  # x W: the channels of what is given are the last axis
            return own * flat
        turned = bool(self.operation.args[6])
        return own * flat.view(*((1, -1) if turned else (-1, 1)), *(1,) * (own.ndim - 2))

    @property
    def gain(self) -> Tensor | None:
        """What multiplies each channel of the product, in a shape that fits what is given."""
        return self._gain_and_shift[0]

    @property
    def bias(self) -> Tensor | None:
        """What is added, in a shape that fits what is given."""
        return self._gain_and_shift[1]

    def offset(self, bias: Tensor | None, more: float) -> Tensor:
        """A bias for `map`, and more."""
        if bias is not None:
            return (bias + more).flatten() if self.is_convolution else bias + more
        shape = self.operation.shape[1:2] if self.is_convolution else ()
        return torch.full(shape, more, dtype=self.x.dtype, device=self.x.device)

    def map(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """The sum of another x with other weights and another bias, as `offset` gives it."""
        if self.is_convolution:
            found: Tensor = torch.ops.aten.convolution(x, weight, bias, *self.operation.args[3:9])
            return found
        found = x @ weight if _is_left(self.operation) else weight @ x
        return found if bias is None else found.add_(bias)

    def back(self, message: Tensor, weight: Tensor) -> Tensor:
        """The derivative of `map` by x, times the message."""
        if self.is_convolution:
            found: Tensor = torch.ops.aten.convolution_backward(
                message, self.x, weight, None, *self.operation.args[3:9], [True, False, False]
            )[0]
            return found
        if weight.ndim == 1:
            return message[..., None] * weight
        return message @ weight.mT if _is_left(self.operation) else weight.mT @ message


def sums(operations: Sequence[Operation]) -> list[Affine]:
    """The sums among operations in the order in which they ran."""
    takers: dict[Any, list[Operation]] = {}
    rising: set[Any] = set()
    for one in operations:
        for operand in one.operands:
            takers.setdefault(operand.edge[0], []).append(one)
        if one.kind is Kind.RECTIFIER or (_keeps_signs(one) and all(each.edge[0] in rising for each in one.operands)):
            rising.add(one.node)
    found = []
    for one in operations:
        if one.kind is Kind.AFFINE:
            after: list[Operation] = []
            while len(next_ := takers.get((after[-1] if after else one).node, [])) == 1 and _belongs(one, next_[0]):
                after.append(next_[0])
            while after and after[-1].kind is Kind.LAYOUT:
                after.pop()
            last = after[-1] if after else one
            next_ = takers.get(last.node, [])
            rectified = bool(next_) and not last.ends and all(taker.kind is Kind.RECTIFIER for taker in next_)
            found.append(Affine(one, tuple(after), one.operands[0].edge[0] in rising, rectified))
    return found


def _keeps_signs(one: Operation) -> bool:
    """Whether it gives nothing negative of what is not."""
    if one.what == "constant_pad_nd":
        return bool(one.args[2] >= 0)
    if one.what == "cat":  # of parts that all depend on the input: nothing is known of others
        axis = one.args[1]
        return bool(sum(operand.shape[axis] for operand in one.operands) == one.shape[axis])
    return one.what in _KEEP_SIGNS


def _belongs(affine: Operation, one: Operation) -> bool:
    """Whether the operation scales and shifts each channel of the sum."""
    convolves = affine.what not in _MATRICES
    if affine.what in ("mv", "dot") or (
        convolves and affine.args[6] and affine.args[8] > 1
    ):  # the channels lie elsewhere
        return False
    if one.kind is Kind.LAYOUT:  # a matrix product of more axes than two is one of two, rearranged
        if one.what == "permute" and one.args[1][-1] % len(one.shape) != len(one.shape) - 1:
            return False
        return not convolves and one.what in _REARRANGED and one.shape[-1] == affine.shape[-1]
    if one.kind is not Kind.SCALE:
        return False
    if one.what in _NORMS:
        return convolves or (len(one.shape) == 2 and _is_left(affine))
    if one.what not in ("add", "sub"):
        return False
    added = _constant(one)
    if not isinstance(added, Tensor) or one.args[2] != 1:
        return False
    if one.what == "sub" and one.operands[0].at != 0:
        return False
    axis = 1 - len(one.shape) if convolves else -1
    full = (1,) * (len(one.shape) - added.ndim) + tuple(added.shape)
    return len(full) == len(one.shape) and added.numel() == full[axis] == one.shape[axis]


def _norm(one: Operation) -> tuple[Tensor, Tensor]:
    """What a batch norm multiplies and adds to each channel."""
    _, weight, bias, mean, variance, *rest = one.args
    gain = (variance.double() + rest[-1]).rsqrt()
    gain = gain if weight is None else gain * weight.double()
    shift = -mean.double() * gain
    shift = shift if bias is None else shift + bias.double()
    shape = (-1, *(1,) * (len(one.shape) - 2))
    return gain.to(mean.dtype).view(shape), shift.to(mean.dtype).view(shape)


def _constant(one: Operation) -> Any:
    """What is added that does not depend on the input."""
    return one.args[1 if one.operands[0].at == 0 else 0]


def _is_left(matrix: Operation) -> bool:
    """Whether x stands on the left of the product."""
    return matrix.operands[0].at == (1 if matrix.what in ("addmm", "baddbmm") else 0)

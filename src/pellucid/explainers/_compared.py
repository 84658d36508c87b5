"""DeepLIFT's rescale rule for operations, each compared with what it gave for a baseline.

A multiplier m takes the place of the derivative such that sum_i m_i (x_i - x'_i) = y - y' for every operation:

    functions of one number          (y - y') / (x - x'), or the derivative           (Shrikumar et al. 2017, eq. 10)
    products a b, matrix products    (b + b') / 2 and (a + a') / 2
    quotients a / b                  as a times 1 / b
    maxima                           to the largest of each pass what it has over, or under, the other's largest
    softmax, norms                   as the exponentials, sums, roots and products that they are made of

So the multipliers of a whole network times x - x' sum to f(x) - f(x') whatever it is made of.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pellucid.core.executed import derivative
from pellucid.core.operation import Kind, Operation
from pellucid.core.rule import Assigned, Keep, Rule, RuleBook, Sent
from pellucid.errors import RuleError

__all__ = ["Compared"]

_LINEAR = frozenset({Kind.LAYOUT, Kind.AFFINE, Kind.SCALE, Kind.SUM, Kind.ADD})
_LARGEST = frozenset({"max_pool2d_with_indices", "max_pool3d_with_indices", "adaptive_max_pool2d",
                      "adaptive_max_pool3d", "amax", "max", "maximum"})  # fmt: skip
_LEAST = frozenset({"amin", "min", "minimum"})
_VALUES = frozenset({Kind.RECTIFIER, Kind.ACTIVATION, Kind.MAX, Kind.PRODUCT, Kind.SOFTMAX, Kind.NORM})


@dataclass(frozen=True)
class Compared(RuleBook):
    """The rescale rule for every operation that is not linear."""

    @property
    def keep(self) -> Keep:
        return Keep(_VALUES, _VALUES - {Kind.PRODUCT, Kind.NORM})

    def assign(self, operations: Sequence[Operation], beside: Sequence[Operation] = ()) -> Mapping[Operation, Assigned]:
        pairs = zip(operations, [*beside, *operations[len(beside) :]], strict=True)  # what nobody recorded comes last
        return {one: _assigned(one, other) for one, other in pairs}


def _no_rule(what: str) -> str:
    return (
        f"DeepLIFT has no rule for the operation {what!r} of the network. `pellucid check --method deep-lift` lists "
        "all that it executes. Take a method that needs gradients only, such as IntegratedGradients()."
    )


def _assigned(one: Operation, other: Operation) -> Assigned:
    if one.kind in _LINEAR:
        return Assigned(None, "linear")
    if one.kind is Kind.PRODUCT and one.what == "div" and len(one.operands) + (one.operands[0].at == 1) == 2:
        return Assigned(_paired(_quotient, other), "as a product with 1 / b")
    if one.kind is Kind.MATMUL or (one.kind is Kind.PRODUCT and one.what == "mul"):
        return Assigned(_paired(_product, other), "mean of both factors")
    if one.kind in (Kind.RECTIFIER, Kind.ACTIVATION) and len(one.operands) == 1:
        return Assigned(_paired(_rescaled, other), "rescale")
    if one.kind is Kind.MAX and one.what in _LARGEST | _LEAST:
        return Assigned(_paired(_largest, other), "to the largest of both passes")
    if one.kind is Kind.SOFTMAX:
        return Assigned(_paired(_softmax, other), "rescale of its parts")
    if one.kind is Kind.NORM:
        return Assigned(_paired(_norm, other), "rescale of its parts")
    return Assigned(None, "no rule", _no_rule(one.what))


@dataclass(frozen=True, eq=False)
class _Paired:
    rule: Callable[[Operation, Operation, Tensor], list[Sent]]
    other: Operation

    def __call__(self, operation: Operation, messages: Sequence[Tensor | None]) -> list[Sent]:
        message = messages[0]
        if message is None:
            raise RuleError(_no_rule(f"{operation.what} (a second output)"))
        return self.rule(operation, self.other, message)


def _paired(rule: Callable[[Operation, Operation, Tensor], list[Sent]], other: Operation) -> Rule:
    return _Paired(rule, other)


def _change(one: Operation, other: Operation) -> tuple[Tensor, Tensor]:
    """X - x', and whether it is too small to divide by."""
    x, y = one.operands[0].value, other.operands[0].value
    change = x - y
    return change, _tiny(change, x, y)


def _tiny(change: Tensor, x: Tensor, y: Tensor) -> Tensor:
    # Where the quotient of differences has lost half its digits, the derivative is as near.
    # What is infinite in both passes, as under a mask, has not changed either.
    tiny: Tensor = (x == y) | (change.abs() <= torch.finfo(change.dtype).eps ** 0.5 * (x.abs() + y.abs()))
    return tiny


def _over(numerator: Tensor, change: Tensor, tiny: Tensor, instead: Tensor) -> Tensor:
    return torch.where(tiny, instead, numerator / torch.where(tiny, 1, change))


def _rescaled(one: Operation, other: Operation, message: Tensor) -> list[Sent]:
    change, tiny = _change(one, other)
    [sent] = derivative(one, [message])
    return [sent._replace(message=_over(message * (one.output - other.output), change, tiny, sent.message))]


def _product(one: Operation, other: Operation, message: Tensor) -> list[Sent]:
    """Half of each pass's derivative, which is the other factor."""
    here, there = derivative(one, [message]), derivative(other, [message])
    return [sent._replace(message=(sent.message + also.message) / 2) for sent, also in zip(here, there, strict=True)]


def _quotient(one: Operation, other: Operation, message: Tensor) -> list[Sent]:
    a, b = (operand.value for operand in one.operands) if len(one.operands) == 2 else (None, one.operands[0].value)
    c, d = (
        (operand.value for operand in other.operands) if len(other.operands) == 2 else (None, other.operands[0].value)
    )
    above = one.args[0] if a is None or c is None else (a + c) / 2
    found = []
    if a is not None:
        found.append(Sent(one.operands[0].edge, (message * (1 / b + 1 / d) / 2).sum_to_size(a.shape)))
    return [*found, Sent(one.operands[-1].edge, (-message * above / (b * d)).sum_to_size(b.shape))]


def _largest(one: Operation, other: Operation, message: Tensor) -> list[Sent]:
    y, z = one.output, other.output
    between = torch.minimum(y, z) if one.what in _LEAST else torch.maximum(y, z)
    here, there = derivative(one, [message * (between - z)]), derivative(other, [message * (y - between)])
    plain = derivative(one, [message])
    found = []
    for i, operand in enumerate(one.operands):
        x, w = operand.value, other.operands[i].value
        total = here[i].message + there[i].message
        found.append(Sent(operand.edge, _over(total, x - w, _tiny(x - w, x, w), plain[i].message)))
    return found


def _softmax(one: Operation, other: Operation, message: Tensor) -> list[Sent]:
    axis = one.args[1]
    x, w = one.operands[0].value, other.operands[0].value
    top = torch.maximum(x, w).amax(axis, keepdim=True)
    e, f = (x - top).exp(), (w - top).exp()
    s, t = e.sum(axis, keepdim=True), f.sum(axis, keepdim=True)
    if one.what == "_log_softmax":
        by_sum = -message.sum(axis, keepdim=True) * _over(s.log() - t.log(), s - t, _tiny(s - t, s, t), 1 / s)
        plain = message
    else:
        by_inverse = (message * (e + f)).sum(axis, keepdim=True) / 2
        by_sum = -by_inverse / (s * t)
        plain = torch.zeros_like(message)
    by_exp = by_sum if one.what == "_log_softmax" else message * (1 / s + 1 / t) / 2 + by_sum
    slope = _over(e - f, x - w, _tiny(x - w, x, w), e)
    return [Sent(one.operands[0].edge, plain + by_exp * slope)]


def _norm(one: Operation, other: Operation, message: Tensor) -> list[Sent]:
    x, w = one.operands[0].value, other.operands[0].value
    args = one.args
    shape = x.shape
    axes: tuple[int, ...]
    if one.what == "native_batch_norm":  # with the statistics of the numbers at hand
        weight, eps, axes = args[1], args[7], (0, *range(2, x.ndim))
        unit: tuple[int, ...] = (-1, *(1,) * (x.ndim - 2))
    elif one.what == "native_group_norm":
        weight, groups, eps = args[1], args[6], args[7]
        unit = (-1, *(1,) * (x.ndim - 2))
        x, w = (t.reshape(len(t), groups, -1) for t in (x, w))
        axes = (-1,)
    else:
        weight, eps = args[2], args[4] if one.what == "native_layer_norm" else args[3]
        unit = tuple(args[1])
        axes = tuple(range(-len(unit), 0))
    if weight is not None:
        message = message * weight.view(unit)
    message = message.reshape(x.shape)
    centres = one.what != "_fused_rms_norm"
    u, v = ((t - t.mean(axes, keepdim=True)) if centres else t for t in (x, w))
    eps = torch.finfo(x.dtype).eps if eps is None else eps
    a, b = ((t.square().mean(axes, keepdim=True) + eps).rsqrt() for t in (u, v))
    by_inverse = (message * (u + v)).sum(axes, keepdim=True) / 2
    by_square = -by_inverse * (a * b).square() / (a + b)  # (a - b) / (1 / a^2 - 1 / b^2)
    count = u.numel() // a.numel()
    found = message * (a + b) / 2 + by_square * (u + v) / count
    if centres:
        found = found - found.mean(axes, keepdim=True)
    return [Sent(one.operands[0].edge, found.reshape(shape))]

"""LRP's rules for weighted sums z_j = sum_i x_i w_ij + b_j: how the relevance R_j = z_j m_j of each is divided.

    Epsilon      R_i = sum_j x_i w_ij / (z_j + e sign z_j) R_j                         (Bach et al. 2015, eq. 58)
    Gamma        w_ij + g w+_ij in place of w_ij, for positive x                       (Montavon et al. 2019, 10.2)
    AlphaBeta    R_i = sum_j (a (x_i w_ij)+ / z+_j - b (x_i w_ij)- / z-_j) R_j         (Bach et al. 2015, eq. 60)
    ZPlus        AlphaBeta with a = 1, b = 0                                           (Montavon et al. 2017)
    Winner       ZPlus without the biases                                              (Zhang et al. 2016, eq. 5)
    Flat         R_i = sum_j 1 / n_j R_j                                               (Lapuschkin et al. 2017)
    WSquare      R_i = sum_j w_ij^2 / sum_k w_kj^2 R_j                                 (Montavon et al. 2017)
    ZBox         x_i w_ij - l_i w+_ij - h_i w-_ij for x_i w_ij, x in [l, h]            (Montavon et al. 2017)

Each gives the message m_i = R_i / x_i, computed without that quotient; the last three, which give relevance where x is
zero too, give R_i, and stand at inputs only.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from pellucid.core.baseline import Baseline, Pixel, check_baseline
from pellucid.core.checks import check_number
from pellucid.core.input import Preprocess
from pellucid.core.recipe import Value
from pellucid.errors import ArgumentError, RuleError
from pellucid.explainers._affine import Affine

__all__ = [
    "AlphaBeta",
    "Epsilon",
    "Flat",
    "Gamma",
    "SumRule",
    "WSquare",
    "Winner",
    "ZBox",
    "ZPlus",
    "divided",
    "stabilised",
]

_STABLE = 1e-6


class SumRule(ABC, Value):
    """How the relevance of a weighted sum is divided among what is summed."""

    lands = False
    """Whether it gives relevance, not messages: at inputs only."""

    def at(self, x: Tensor, preprocess: Preprocess | None) -> "SumRule":
        """The rule for inputs like x."""
        return self

    @abstractmethod
    def back(self, affine: Affine, message: Tensor) -> Tensor:
        """The messages to x, or the relevance of x."""


def stabilised(z: Tensor, epsilon: float) -> Tensor:
    """Z, further from zero by epsilon."""
    away = torch.copysign(torch.tensor(epsilon, dtype=z.dtype, device=z.device), z)
    return away.add_(z)


def divided(message: Tensor, z: Tensor, by: Tensor, epsilon: float = _STABLE) -> Tensor:
    """Relevance over another sum: m z / (by + e sign by)."""
    return (message * z).div_(stabilised(by, epsilon))


@dataclass(frozen=True)
class Epsilon(SumRule):
    """In proportion to the summands; `epsilon` absorbs relevance where they cancel. 0 is LRP-0."""

    epsilon: float = _STABLE

    def __post_init__(self) -> None:
        check_number("epsilon", self.epsilon, least=0)

    def back(self, affine: Affine, message: Tensor) -> Tensor:
        return affine.back(divided(message, affine.z, affine.z, self.epsilon), affine.weight)


@dataclass(frozen=True)
class Gamma(SumRule):
    """What speaks for the sign of the sum counts 1 + `gamma` times. The generalised form, for x of either sign."""

    gamma: float = 0.25

    def __post_init__(self) -> None:
        check_number("gamma", self.gamma, least=0)

    def back(self, affine: Affine, message: Tensor) -> Tensor:
        z, w, b = affine.z, affine.weight, affine.bias
        shares = []
        for sign in (1,) if affine.rectified else (1, -1):
            bias = None if b is None else b + self.gamma * _part(b, sign)
            relevance = message * (z if affine.rectified else _part(z, sign))
            positive, negative = partial(self._more, w, sign), partial(self._more, w, -sign)
            shares.append(_Share(relevance, positive, negative, bias, sign, mixed=True))
        return _split(affine, shares)

    def _more(self, w: Tensor, sign: int) -> Tensor:
        return w + self.gamma * _part(w, sign)


@dataclass(frozen=True)
class AlphaBeta(SumRule):
    """`alpha` times the positive summands in their proportions less `beta` times the negative in theirs.

    Raises:
        ArgumentError: alpha - beta is not 1, so that relevance would grow or shrink.
    """

    alpha: float = 2.0
    beta: float = 1.0

    def __post_init__(self) -> None:
        check_number("alpha", self.alpha, least=1)
        check_number("beta", self.beta, least=0)
        if self.alpha - self.beta != 1:
            raise ArgumentError(f"Expected alpha - beta to be 1, but got {self.alpha} - {self.beta}.")

    def back(self, affine: Affine, message: Tensor) -> Tensor:
        w, b, relevance = affine.weight, affine.bias, message * affine.z
        shares = []
        for sign, factor in ((1, self.alpha), (-1, -self.beta)):
            if factor:
                bias = None if b is None else _part(b, sign)
                shares.append(_Share(relevance, partial(_part, w, sign), partial(_part, w, -sign), bias, sign, factor))
        return _split(affine, shares)


@dataclass(frozen=True)
class ZPlus(SumRule):
    """In proportion to the positive summands."""

    def back(self, affine: Affine, message: Tensor) -> Tensor:
        return AlphaBeta(1.0, 0.0).back(affine, message)


@dataclass(frozen=True)
class Winner(SumRule):
    """In proportion to the positive summands, biases left out: the probability of being the winner's reason."""

    def back(self, affine: Affine, message: Tensor) -> Tensor:
        w = affine.weight
        return _split(affine, [_Share(message * affine.z, partial(_part, w, 1), partial(_part, w, -1), None)])


@dataclass(frozen=True)
class Flat(SumRule):
    """To all summands alike."""

    lands = True

    def back(self, affine: Affine, message: Tensor) -> Tensor:
        return _in_proportion(affine, message, torch.ones_like(affine.weight))


@dataclass(frozen=True)
class WSquare(SumRule):
    """In proportion to the squared weights."""

    lands = True

    def back(self, affine: Affine, message: Tensor) -> Tensor:
        return _in_proportion(affine, message, affine.weight.square())


@dataclass(frozen=True)
class ZBox(SumRule):
    """In proportion to how far each summand is above the least that an input between `low` and `high` can give.

    The bounds are baselines: black and white, or Constant(...) in the model's own units.
    """

    low: Baseline = field(default_factory=lambda: Pixel(0.0))
    high: Baseline = field(default_factory=lambda: Pixel(1.0))
    lands = True

    def __post_init__(self) -> None:
        check_baseline(self.low)
        check_baseline(self.high)

    def at(self, x: Tensor, preprocess: Preprocess | None) -> SumRule:
        return _Box(self.low.values(x[:1], preprocess), self.high.values(x[:1], preprocess))

    def back(self, affine: Affine, message: Tensor) -> Tensor:
        raise NotImplementedError("`at` gives the rule for inputs")


@dataclass(frozen=True, eq=False)
class _Box(SumRule):
    low: Tensor
    high: Tensor
    lands = True

    def back(self, affine: Affine, message: Tensor) -> Tensor:
        w, x = affine.weight, affine.x
        low, high = (-_fitted(bound.to(x), x) for bound in (self.low, self.high))
        bounds = ((x, w), (low, _part(w, 1)), (high, _part(w, -1)))
        z = affine.map(*bounds[0])
        for value, weight in bounds[1:]:
            z.add_(affine.map(value, weight))
        share = message * affine.z / stabilised(z, _STABLE)
        found = x * affine.back(share, w)
        for value, weight in bounds[1:]:
            found.addcmul_(value, affine.back(share, weight))
        return found


def _fitted(bound: Tensor, x: Tensor) -> Tensor:
    """A bound of the input for what the network takes of it: the same, or a picture with another edge.

    Raises:
        RuleError: it takes the input in another layout.
    """
    if bound.shape[1:] == x.shape[1:]:
        return bound.expand_as(x)
    of_channels = bound.flatten(2)[..., :1] if bound.ndim > 2 else bound[..., None]
    alike = bound.ndim == x.ndim > 2 and bound.shape[1] == x.shape[1] and bool((bound.flatten(2) == of_channels).all())
    if not alike:
        raise RuleError(
            f"ZBox stands where the network takes its input {tuple(bound.shape[1:])} as it is, but it takes "
            f"{tuple(x.shape[1:])}. Give LRP first=Flat() or WSquare()."
        )
    return of_channels.view(1, -1, *(1,) * (x.ndim - 2)).expand_as(x)


def _part(t: Tensor, sign: int) -> Tensor:
    return t.clamp(min=0) if sign > 0 else t.clamp(max=0)


@dataclass(frozen=True, eq=False)
class _Share:
    """Relevance for the summands of one set of weights where x is positive, and of another where it is negative, all of
    one `sign`; `factor` multiplies what they get. Where they are `mixed`, sums to which relevance comes have that sign.
    """

    relevance: Tensor
    positive: Callable[[], Tensor]
    negative: Callable[[], Tensor]
    bias: Tensor | None
    sign: int = 1
    factor: float = 1.0
    mixed: bool = False


def _split(affine: Affine, shares: Sequence[_Share]) -> Tensor:
    """Relevance in proportion to x w. Convolutions of several sets of weights run as one where they can."""
    parts = [_in_parts(affine, some) for some in ([shares] if affine.together else [[one] for one in shares])]
    return parts[0] if len(parts) == 1 else parts[0].add_(parts[1])


def _in_parts(affine: Affine, shares: Sequence[_Share]) -> Tensor:
    above, below = affine.signs
    positive = [share.positive() for share in shares]
    # The stabiliser goes with the bias: a sum of one sign gets no nearer to zero than that.
    offsets = [affine.offset(share.bias, share.sign * _STABLE) for share in shares]
    z = affine.map(above, _behind(positive), _behind(offsets))
    negative = [] if below is None else [share.negative() for share in shares]
    if below is not None:
        z.add_(affine.map(below, _behind(negative)))
    for share, part in zip(shares, z.chunk(len(shares), 1) if len(shares) > 1 else (z,), strict=True):
        if share.mixed:
            part.clamp_(min=_STABLE) if share.sign > 0 else part.clamp_(max=-_STABLE)
        torch.div(share.relevance, part, out=part)
    found = affine.back(z, _behind([_times(w, share.factor) for w, share in zip(positive, shares, strict=True)]))
    if below is None:
        return found
    others = affine.back(z, _behind([_times(w, share.factor) for w, share in zip(negative, shares, strict=True)]))
    return torch.where(affine.x < 0, others, found)


def _behind(each: Sequence[Tensor]) -> Tensor:
    return each[0] if len(each) == 1 else torch.cat(list(each))


def _times(w: Tensor, factor: float) -> Tensor:
    return w if factor == 1 else w * factor


def _in_proportion(affine: Affine, message: Tensor, weight: Tensor) -> Tensor:
    """Relevance in proportion to weights that are not negative."""
    ones = torch.ones_like(affine.x)
    return affine.back(message * affine.z / stabilised(affine.map(ones, weight), _STABLE), weight)

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
from collections.abc import Callable
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
        z = affine.z
        found: Tensor | None = None
        for sign in (1, -1):
            chosen = torch.where(z > 0 if sign > 0 else z < 0, message, 0)
            if not bool(chosen.any()):  # behind a ReLU nothing reaches negative sums
                continue
            w, b = affine.weight, affine.bias
            bias = None if b is None else b + self.gamma * _part(b, sign)
            part = _split(affine, chosen * z, self._more(w, sign), partial(self._more, w, -sign), bias)
            found = part if found is None else found + part
        return torch.zeros_like(affine.x) if found is None else found

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
        rising, falling = (None if b is None else _part(b, sign) for sign in (1, -1))
        found = _split(affine, relevance, _part(w, 1), partial(_part, w, -1), rising)
        if not self.beta:
            return found if self.alpha == 1 else self.alpha * found
        return self.alpha * found - self.beta * _split(affine, relevance, _part(w, -1), partial(_part, w, 1), falling)


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
        return _split(affine, message * affine.z, _part(w, 1), partial(_part, w, -1), None)


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
        z = torch.stack([affine.map(value, weight) for value, weight in bounds]).sum(0)
        share = message * affine.z / stabilised(z, _STABLE)
        return torch.stack([value * affine.back(share, weight) for value, weight in bounds]).sum(0)


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


def _split(
    affine: Affine, relevance: Tensor, of_positive: Tensor, of_negative: Callable[[], Tensor], bias: Tensor | None
) -> Tensor:
    """Relevance in proportion to x w, with one set of weights where x is positive and another where it is negative."""
    x = affine.x
    below = bool(x.min() < 0)  # behind a ReLU nothing is
    z = affine.map(x.clamp(min=0) if below else x, of_positive)
    others = of_negative() if below else None
    if others is not None:
        z = z + affine.map(x.clamp(max=0), others)
    if bias is not None:
        z = z + bias
    share = relevance / stabilised(z, _STABLE)
    found = affine.back(share, of_positive)
    return found if others is None else torch.where(x < 0, affine.back(share, others), found)


def _in_proportion(affine: Affine, message: Tensor, weight: Tensor) -> Tensor:
    """Relevance in proportion to weights that are not negative."""
    ones = torch.ones_like(affine.x)
    return affine.back(message * affine.z / stabilised(affine.map(ones, weight), _STABLE), weight)

"""Shapley values as a linear functional of a Gaussian process over sets of segments.

A kernel on signs x, y in {-1, 1}^n is a sum of parts with weights of their own: linear, x' C y, with C the identity or
smooth over neighbouring segments; and products over a window W of segments, the odd part of exp(-q d_W(x, y)), d_W the
number of segments of W in which x and y differ. The Shapley value of player j in a game g is

    phi_j = int_0^1 E_t[g(x, j present) - g(x, j absent)] dt,    others present with probability t     (Owen 1972)

of a product of factors a polynomial in t, so that Gauss-Legendre quadrature of enough points is exact.
"""

import itertools
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from pellucid.core.queries import Fit
from pellucid.core.segments import HELD
from pellucid.explainers._odd_process import fit_weights, posterior, told

__all__ = ["Neighbourhood", "neighbourhood", "shapley_fit"]

_SMOOTH = (1.0, 2.0)  # widths of the linear kernels, in steps between neighbours
_WEIGHED = 512
"""Pairs from which the kernels are weighed: more change the map by a few hundredths of its error, and take the time."""

_WHOLE = (0.5, 2.0, 6.0, 15.0)  # q times n of products over all segments
_WINDOWS = ((2, 0.7), (3, 0.4), (4, 0.15))
"""The side of a window on a lattice, and its q; of other segments those that touch in pairs, a segment with all that
touch it, and with all that touch these.
"""


@dataclass(frozen=True, eq=False)
class Neighbourhood:
    """Where segments lie to each other: squared distances in steps from neighbour to neighbour, and for each size of
    window the sets of segments that go together.
    """

    squared: Float[np.ndarray, "s s"]
    windows: tuple[tuple[np.ndarray, ...], ...]


class Part(ABC):
    """One kernel: its values between sets, and its Shapley values."""

    @abstractmethod
    def gram(self, signs: Float[np.ndarray, "n s"]) -> Float[np.ndarray, "n n"]:
        """k(x_a, x_b) of the odd part."""

    @abstractmethod
    def values(self, signs: Float[np.ndarray, "n s"]) -> tuple[Float[np.ndarray, "s n"], Float[np.ndarray, " s"]]:
        """The Shapley values of the game k(., x_b) for each b, and the prior variance of each value."""


@dataclass(frozen=True, eq=False)
class Linear(Part):
    """x' C y: the value of player j is twice its coefficient."""

    covariance: Float[np.ndarray, "s s"]

    def gram(self, signs: Float[np.ndarray, "n s"]) -> Float[np.ndarray, "n n"]:
        return np.asarray(signs @ self.covariance @ signs.T)

    def values(self, signs: Float[np.ndarray, "n s"]) -> tuple[Float[np.ndarray, "s n"], Float[np.ndarray, " s"]]:
        return 2 * self.covariance @ signs.T, 4 * np.diag(self.covariance)


@dataclass(frozen=True, eq=False)
class Product(Part):
    """The sum over windows of exp(-q d) - exp(-q (|W| - d)): what segments of a window do together."""

    windows: tuple[np.ndarray, ...]
    decay: float

    def gram(self, signs: Float[np.ndarray, "n s"]) -> Float[np.ndarray, "n n"]:
        total = np.zeros((len(signs), len(signs)))
        for window in self.windows:
            size = len(window)
            apart = (size - signs[:, window] @ signs[:, window].T) / 2
            table = np.exp(-self.decay * np.arange(size + 1)) - np.exp(-self.decay * np.arange(size, -1, -1))
            total += table[np.rint(apart).astype(np.intp)]
        return total

    def values(self, signs: Float[np.ndarray, "n s"]) -> tuple[Float[np.ndarray, "s n"], Float[np.ndarray, " s"]]:
        values = np.zeros((signs.shape[1], len(signs)))
        prior = np.zeros(signs.shape[1])
        ratio = np.exp(-self.decay)
        for window in self.windows:
            present = signs[:, window] > 0
            own, variance = _product_values(present, ratio)
            values[window] += own
            prior[window] += variance
        return values, prior


def _product_values(present: Bool[np.ndarray, "n m"], ratio: float) -> tuple[Float[np.ndarray, "m n"], float]:
    """Shapley values of prod_j (1 or ratio, as x_j equals y_j or not), its odd part, in each player; and their prior
    variance, which is the same for all.
    """
    m = present.shape[1]
    points, weights = np.polynomial.legendre.leggauss(m // 2 + 1)
    t, weights = (points + 1) / 2, weights / 2
    # E_t of one factor, where y has the player and where it has not.
    with_it, without = np.log(t + (1 - t) * ratio), np.log(1 - t + t * ratio)
    count = present.sum(1, keepdims=True)
    others = count * with_it + (m - count) * without
    up, down = np.exp(others - with_it) @ weights, np.exp(others - without) @ weights
    # The complement's game has the same values with the other sign: the odd part doubles them.
    values = 2 * (1 - ratio) * np.where(present, up[:, None], -down[:, None]).T
    both = np.outer(t, t) + np.outer(1 - t, 1 - t)
    variance = 4 * (1 - ratio) * (np.outer(weights, weights) * (ratio + (1 - ratio) * both) ** (m - 1)).sum()
    return values, float(variance)


def parts(near: Neighbourhood) -> list[Part]:
    """The kernels, from single segments to all together."""
    players = len(near.squared)
    found: list[Part] = [Linear(np.eye(players))]
    if any(near.windows):
        found += [Linear(_positive(np.exp(-near.squared / (2 * width**2)))) for width in _SMOOTH]
    found += [Product((np.arange(players),), q / players) for q in _WHOLE]
    found += [
        Product(windows, decay)
        for windows, (_, decay) in zip(near.windows, _WINDOWS, strict=True)
        if windows and max(map(len, windows)) < players
    ]
    return found


def shapley_fit(signs: Float[np.ndarray, "n s"], halves: Float[np.ndarray, " n"], near: Neighbourhood) -> Fit:
    """The values from n sets, the full one first, with their posterior variance; they sum to twice h of the full."""
    kernels = parts(near)
    first = slice(_WEIGHED)
    process = fit_weights([part.gram(signs[first]) for part in kernels], halves[first])
    if len(halves) > _WEIGHED and process.weights.any():
        process = posterior(process.weights, process.noise, (part.gram(signs) for part in kernels), halves)
    values, prior = np.zeros((signs.shape[1], len(signs))), np.zeros(signs.shape[1])
    for weight, part in zip(process.weights, kernels, strict=True):
        own, variance = part.values(signs)
        values += weight * own
        prior += weight * variance
    phi = values @ process.alpha
    change = float(2 * halves[0])
    phi += (change - phi.sum()) / len(phi)
    spread = np.clip(prior - np.einsum("sa,ab,sb->s", values, process.inverse, values, optimize=True), 0, None)
    return told(Fit(phi, spread, change=change, notes={"segments": float(len(phi))}), process.r2, "Regression()")


def neighbourhood(labels: Int[np.ndarray, "*places"]) -> Neighbourhood:
    """How the segments of a picture or signal lie to each other: on a lattice, or by which of them touch."""
    players = int(labels.max()) + 1
    centres = _centres(labels, players)
    rows = [np.unique(np.round(axis, 6), return_inverse=True)[1] for axis in centres.T]
    if np.prod([row.max() + 1 for row in rows]) == players:
        at = np.stack(rows, 1)
        squared = ((at[:, None] - at) ** 2).sum(-1).astype(np.float64)
        return Neighbourhood(squared, tuple(_lattice_windows(at, side) for side, _ in _WINDOWS))
    touching = _touching(labels, players)
    apart = ((centres[:, None] - centres) ** 2).sum(-1)
    step = float(np.median(apart[touching])) if touching.any() else 1.0
    near = touching | np.eye(players, dtype=bool)
    further = (near.astype(int) @ near) > 0
    pairs = {tuple(sorted(pair)) for pair in zip(*map(np.ndarray.tolist, np.nonzero(touching)), strict=True)}
    return Neighbourhood(apart / step, (_sets(pairs), _sets(map(_members, near)), _sets(map(_members, further))))


def no_neighbours(players: int) -> Neighbourhood:
    """Of a table's columns, whose order means nothing, and of several inputs: no two are near."""
    return Neighbourhood(np.where(np.eye(players, dtype=bool), 0.0, np.inf), ((),) * len(_WINDOWS))


def _lattice_windows(at: Int[np.ndarray, "s axes"], side: int) -> tuple[np.ndarray, ...]:
    """All windows of `side` segments along each axis, or of as many as there are."""
    ends = at.max(0) + 1
    sides = np.minimum(side, ends)
    starts = itertools.product(*(range(end - own + 1) for end, own in zip(ends, sides, strict=True)))
    return _sets(_members(((at >= start) & (at < start + sides)).all(1)) for start in starts)


def _members(row: Bool[np.ndarray, " s"]) -> tuple[int, ...]:
    return tuple(np.flatnonzero(row).tolist())


def _sets(sets: Iterable[tuple[int, ...]]) -> tuple[np.ndarray, ...]:
    """Those of two segments or more, each once."""
    return tuple(np.array(one) for one in sorted(set(sets)) if len(one) > 1)


def _centres(labels: Int[np.ndarray, "*places"], players: int) -> Float[np.ndarray, "s axes"]:
    where = np.nonzero(labels != HELD)
    own = labels[where]
    counts = np.maximum(np.bincount(own, minlength=players), 1)
    return np.stack([np.bincount(own, axis, players) / counts for axis in where], 1)


def _touching(labels: Int[np.ndarray, "*places"], players: int) -> Bool[np.ndarray, "s s"]:
    """Which segments have places side by side."""
    found = np.zeros((players, players), dtype=bool)
    for axis in range(labels.ndim):
        along = np.moveaxis(labels, axis, 0)
        one, other = along[:-1].ravel(), along[1:].ravel()
        apart = (one != other) & (one != HELD) & (other != HELD)
        found[one[apart], other[apart]] = True
    return found | found.T


def _positive(covariance: Float[np.ndarray, "s s"]) -> Float[np.ndarray, "s s"]:
    """The covariance without what is below zero: distances between touching segments need not be those of a plane."""
    values, vectors = np.linalg.eigh(covariance)
    return np.asarray((vectors * np.clip(values, 0, None)) @ vectors.T)

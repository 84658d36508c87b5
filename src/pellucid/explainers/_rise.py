"""Random masks that keep a part of a picture, and what a method needs that weights them by the score of what they keep.

    m = (b enlarged bilinearly)[shift : shift + side],   b_j ~ Bernoulli(p)        (Petsiuk et al. 2018, section 3.2)

A grid b of `cells` along each axis is enlarged to (cells + 1) ceil(side / cells) places, and a window of the input's
size is cut out at a random place of the first cell. Along one axis that is a product with a matrix whose rows sum to
one: m = A[shift_y] b A[shift_x]^T. So its mean is p everywhere, and the mask of the complement of b is 1 - m.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from pellucid.core.checks import check_count
from pellucid.core.estimate import Estimate
from pellucid.core.model import Model
from pellucid.core.prediction import OutputKind
from pellucid.core.queries import Fit, Question, Run
from pellucid.core.random import Key, uniform
from pellucid.core.recipe import Value
from pellucid.core.segments import places_of
from pellucid.core.stopping import Until
from pellucid.core.target import ClassScore, Probability, Targets
from pellucid.errors import ArgumentError, ModelError
from pellucid.explainers._queried import Budgeted, Place

__all__ = ["Grid", "MaskEstimator", "Masking", "Masks", "RandomMasks", "drawn", "of_mean", "weighted"]

_CHUNK = 2**22
"""The most numbers of masks that are held at once while they are weighted: 32 MiB."""


@dataclass(frozen=True)
class Grid:
    """The places of an input along each axis, and the cells of the grid of bits; no axis has more than its places."""

    sides: tuple[int, ...]
    cells: tuple[int, ...]

    @classmethod
    def of(cls, sides: Sequence[int], cells: int) -> "Grid":
        """A grid of as many cells along each axis."""
        return cls(tuple(sides), tuple(min(cells, side) for side in sides))

    @cached_property
    def enlarged(self) -> tuple[Float[np.ndarray, "shifts side cells"], ...]:
        """A of each axis: what the bits are multiplied with at each shift."""
        return tuple(_enlarged(side, cells) for side, cells in zip(self.sides, self.cells, strict=True))


def _enlarged(side: int, cells: int) -> Float[np.ndarray, "shifts side cells"]:
    cell = -(-side // cells)
    large = (cells + 1) * cell
    # Places and cells are compared by their middles; outside of the outermost middles nothing changes any more.
    at = np.clip((np.arange(large) + 0.5) * cells / large - 0.5, 0, cells - 1)
    before = np.minimum(at.astype(int), max(cells - 2, 0))
    matrix = np.zeros((large, cells))
    matrix[np.arange(large), before] = 1 - (at - before)
    if cells > 1:
        matrix[np.arange(large), before + 1] = at - before
    return np.stack([matrix[shift : shift + side] for shift in range(cell)])


@dataclass(frozen=True, eq=False)
class Masks:
    """N masks, as the bits and shifts of which they are made: the masks themselves are never all there at once."""

    grid: Grid
    p: float
    bits: Bool[np.ndarray, "n *cells"]
    shifts: Int[np.ndarray, "n axes"]

    def __len__(self) -> int:
        return len(self.bits)

    def __getitem__(self, chosen: slice | np.ndarray) -> "Masks":
        return replace(self, bits=self.bits[chosen], shifts=self.shifts[chosen])

    def values(self) -> Float[np.ndarray, "n *sides"]:
        """The masks."""
        found = self.bits.astype(np.float64)
        for axis, matrices in enumerate(self.grid.enlarged):
            found = along_first(found, matrices[self.shifts[:, axis]])
        return found


def along_first(
    values: Float[np.ndarray, "n c *others"], matrices: Float[np.ndarray, "n s c"]
) -> Float[np.ndarray, "n *others s"]:
    """The first axis of each multiplied with a matrix of its own, and put last: after all axes they are in order."""
    count, size, *others = values.shape
    found = np.matmul(values.reshape(count, size, -1).swapaxes(1, 2), matrices.swapaxes(1, 2))
    return np.reshape(found, (count, *others, -1))


def drawn(stream: Key, indices: Sequence[int], grid: Grid, p: float) -> Masks:
    """The masks of these draws."""
    cells, axes = math.prod(grid.cells), len(grid.cells)
    each = np.stack([uniform(stream, index, cells + axes) for index in indices])
    counts = np.array([len(matrices) for matrices in grid.enlarged])
    return Masks(grid, p, (each[:, :cells] < p).reshape(-1, *grid.cells), (each[:, cells:] * counts).astype(np.int64))


def weighted(
    masks: Masks, weights: Float[np.ndarray, "n k"]
) -> tuple[Float[np.ndarray, "k *sides"], Float[np.ndarray, "*sides"]]:
    """sum_i w_ik (m_i - p) of each column of weights, and sum_i w_i0^2 (m_i - p)^2 of the first."""
    sides = masks.grid.sides
    size = max(_CHUNK // math.prod(sides), 1)
    first, second = np.zeros((weights.shape[1], math.prod(sides))), np.zeros(math.prod(sides))
    for start in range(0, len(masks), size):
        part = slice(start, start + size)
        away = masks[part].values().reshape(-1, math.prod(sides)) - masks.p
        first += weights[part].T @ away
        second += weights[part, 0] ** 2 @ np.square(away, out=away)
    return first.reshape(-1, *sides), second.reshape(sides)


def of_mean(
    total: Float[np.ndarray, "*sides"], squares: Float[np.ndarray, "*sides"], n: int
) -> Float[np.ndarray, "*sides"]:
    """The variance of a mean of n numbers, from their sum and the sum of their squares."""
    return np.asarray(np.clip(squares / n - (total / n) ** 2, 0, None) / (n - 1))


class MaskEstimator(Value, ABC):
    """Abstract: how a map follows from the scores of masked inputs."""

    size: ClassVar[int] = 1
    """How many masks make a draw: 2 are a mask and its complement."""

    least_draws: ClassVar[int] = 2
    """The fewest draws."""

    believed_draws: ClassVar[int] = 2
    """The fewest draws whose error is known well enough to stop by it."""

    @abstractmethod
    def fit(self, scores: Float[np.ndarray, "n size"], masks: Masks) -> Fit:
        """The map of n draws, each with the score of its mask and, in pairs, that of the complement."""

    @property
    @abstractmethod
    def words(self) -> str:
        """What a caption says of it, after the method's name; empty for the usual one."""


class Masking(Question):
    """Masks, or pairs of a mask and its complement: what they keep is the input's, the rest the baseline's."""

    def __init__(self, place: Place, grid: Grid, p: float, estimator: MaskEstimator) -> None:
        self.place, self.grid, self.p, self.estimator = place, grid, p, estimator
        self.size, self.least, self.believed = estimator.size, estimator.least_draws, estimator.believed_draws
        self.width = len(place.absent)

    def masks(self, queries: Sequence[int]) -> Masks:
        """The mask of each query."""
        each = np.asarray(queries)
        draws, where = np.unique(each // self.size, return_inverse=True)
        masks = drawn(self.place.stream, draws.tolist(), self.grid, self.p)[where]
        return replace(masks, bits=masks.bits ^ (each % self.size == 1).reshape(-1, *(1,) * len(self.grid.cells)))

    def rows(self, queries: Sequence[int], copies: Sequence[int]) -> Float[Tensor, "m *features"]:
        kept = torch.from_numpy(self.masks(queries).values()).to(self.place.x)
        # Exact at both ends, which x m + absent (1 - m) is too, but absent + m (x - absent) is not.
        return torch.lerp(self.place.away(copies), self.place.x, self.place.spread(kept))

    def codes(self, queries: Sequence[int]) -> list[bytes]:
        masks = self.masks(queries)
        bits = np.packbits(masks.bits.reshape(len(masks), -1), axis=1)
        return [bit.tobytes() + shift.tobytes() for bit, shift in zip(bits, masks.shifts, strict=True)]

    def fit(self, scores: Float[np.ndarray, " n"]) -> Fit:
        each = scores.reshape(-1, self.size)
        known = np.isfinite(each).all(1)
        if known.sum() < self.least:
            what = "pairs" if self.size == 2 else "masks"
            raise ModelError(
                f"A map of random masks needs {self.least} {what} with scores, but only {int(known.sum())} of "
                f"{len(each)} have them. Take a larger `budget`, or another baseline."
            )
        found = self.estimator.fit(each[known], drawn(self.place.stream, range(len(each)), self.grid, self.p)[known])
        variance = None if found.variance is None else found.variance.ravel()
        return replace(found, values=found.values.ravel(), variance=variance)


@dataclass(frozen=True, kw_only=True)
class RandomMasks(Budgeted):
    """Abstract: a method of random masks of `cells` along each axis, each of which keeps a share `p` of the input."""

    budget: int | Until = 4000
    cells: int = 7
    p: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("cells", self.cells, least=2)
        p: object = self.p
        if isinstance(p, bool) or not isinstance(p, int | float) or not 0 < p < 1:
            raise ArgumentError(f"`p` is the share that masks keep, between 0 and 1, such as 0.5. Got {p!r}.")

    def check_features(self, features: tuple[int, ...]) -> None:
        if len(features) < 2:
            raise ArgumentError(
                f"{self.card.title} is of pictures (B, C, H, W) or signals (B, C, T), where neighbours belong "
                f"together. Got inputs {features}. For tables, and for several inputs at once, take KernelSHAP()."
            )

    def goals(self, model: Model, targets: Targets) -> Targets:
        """A class is scored by its probability (section 3.1), other targets as they are."""
        if targets.kind not in (OutputKind.LOGITS, OutputKind.PROBABILITIES):
            return targets
        each = (Probability(one.index) if isinstance(one, ClassScore) else one for one in targets)
        return Targets(tuple(each), targets.kind)

    def masking(self, place: Place, estimator: MaskEstimator) -> Masking:
        """The question that both forms ask."""
        return Masking(place, Grid.of(places_of(place.x.shape[1:]), self.cells), self.p, estimator)

    def _estimate(self, runs: Sequence[Run], places: Sequence[Place]) -> Estimate:
        found = super()._estimate(runs, places)
        scored = tuple(one.recipe_name for run in runs for one in run.answers.target)
        return replace(found, notes={**found.notes, "score": scored})

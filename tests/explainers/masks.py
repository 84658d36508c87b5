"""All masks that RISE can draw of a small picture, made by torch's own enlargement; so that expectations are sums."""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy.stats import t as student
from torch.nn.functional import interpolate

from pellucid.core.queries import Fit
from pellucid.explainers._rise import Grid, MaskEstimator, Masks

MODES = {1: "linear", 2: "bilinear", 3: "trilinear"}


def enlarged(bits: np.ndarray, sides: tuple[int, ...], shift: tuple[int, ...]) -> np.ndarray:
    """One mask, as the paper says it."""
    cells = [math.ceil(side / count) for side, count in zip(sides, bits.shape, strict=True)]
    size = [(count + 1) * cell for count, cell in zip(bits.shape, cells, strict=True)]
    grid = torch.from_numpy(bits.astype(np.float64))[None, None]
    large = interpolate(grid, size=size, mode=MODES[bits.ndim], align_corners=False)[0, 0].numpy()
    return large[tuple(slice(start, start + side) for start, side in zip(shift, sides, strict=True))]


@dataclass(frozen=True, eq=False)
class AllMasks:
    """Every mask (M, *sides), and of each how many bits of it are set."""

    values: np.ndarray
    bits: np.ndarray
    shifts: np.ndarray

    @classmethod
    def of(cls, sides: tuple[int, ...], cells: int) -> "AllMasks":
        shape = (cells,) * len(sides)
        shifts = itertools.product(*(range(math.ceil(side / cells)) for side in sides))
        grids = [np.array(flat).reshape(shape) for flat in itertools.product((False, True), repeat=math.prod(shape))]
        each = [(bits, shift) for shift in shifts for bits in grids]
        values = np.stack([enlarged(bits, sides, shift) for bits, shift in each])
        return cls(values, np.stack([bits for bits, _ in each]), np.array([shift for _, shift in each]))

    def chances(self, p: float) -> np.ndarray:
        """The probability of each."""
        kept = self.bits.reshape(len(self.bits), -1)
        weights = p ** kept.sum(1) * (1 - p) ** (~kept).sum(1)
        return weights / weights.sum()

    def mean(self, numbers: np.ndarray, p: float) -> np.ndarray:
        """The expectation of a number, or a picture, of each mask."""
        return np.tensordot(self.chances(p), numbers, axes=1)

    def variance(self, numbers: np.ndarray, p: float) -> np.ndarray:
        return self.mean(numbers**2, p) - self.mean(numbers, p) ** 2


def times(scores: np.ndarray, pictures: np.ndarray) -> np.ndarray:
    """Each picture times its score."""
    return scores.reshape(-1, *(1,) * (pictures.ndim - 1)) * pictures


def shown(
    estimator: MaskEstimator,
    sides: tuple[int, ...],
    scored: Callable[[np.ndarray], np.ndarray],
    seed: int,
    p: float,
    most: int,
) -> Callable[[int], Fit]:
    """What the first n draws of a seed show, of at most so many, with two cells along each axis."""
    rng, grid = np.random.default_rng(seed), Grid.of(sides, 2)
    bits = rng.random((most, *(2,) * len(sides))) < p
    masks = Masks(grid, p, bits, rng.integers(0, [len(matrices) for matrices in grid.enlarged], (most, len(sides))))
    kept = masks.values()
    scores = np.stack([scored(each) for each in (kept, 1 - kept)[: estimator.size]], 1)
    return lambda n: estimator.fit(scores[:n], masks[:n])


def covered(fit: Fit, true: np.ndarray, n: int) -> np.ndarray:
    """Whether the 95 % interval of each place holds what is true."""
    return abs(fit.values - true) <= student.ppf(0.975, n - 1) * np.sqrt(fit.variance)

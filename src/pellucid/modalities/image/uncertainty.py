"""Which parts of a sampled map are more than noise: a test of blocks of pixels.

In each block of b x b pixels, all channels, the signal power is the mean of M^2 - SE^2. Were there no signal, the map's
independent batch means would be as likely with the other sign, so the null distribution of the mean of M^2 comes from
flipping their signs: all 2^(k-1) ways for k <= 16 batches, no draw needed. Benjamini and Hochberg's step-up rule holds
the expected share of false blocks among those that are coloured at `rate`. (SE^2 is nearly the same under all flips and
drops out of the comparison.)
"""

from dataclasses import dataclass
from functools import cache

import numpy as np
from jaxtyping import Float
from torch import Tensor

from pellucid.core.attribution import Attribution
from pellucid.core.checks import check_count
from pellucid.core.estimate import BATCHES
from pellucid.errors import ArgumentError

__all__ = ["Certainty", "can_tell", "certain_blocks", "certain_places", "sign_flip_p_values"]

_PATTERNS_AT_ONCE = 4096  # bounds memory: 4096 patterns of 784 blocks are 26 MB


@dataclass(frozen=True, eq=False)
class Certainty:
    """The pixels (H, W) of the blocks that passed the test, and the test in words."""

    pixels: np.ndarray
    caption: str

    @property
    def share(self) -> float:
        """The share of the pixels in blocks that passed."""
        return float(self.pixels.mean())


def can_tell(a: Attribution) -> bool:
    """Whether a map's signal can be told from its sampling error."""
    return a.estimate.batch_means is not None or (a.segments is not None and a.standard_error is not None)


def certain_places(a: Attribution, *, rate: float = 0.05) -> Certainty:
    """The blocks, or the segments, of one image's sampled map that hold signal beyond the sampling error.

    Raises:
        ArgumentError: as `certain_blocks`.
    """
    if a.segments is None or a.standard_error is None or a.estimate.batch_means is not None:
        return certain_blocks(a, rate=rate)
    return _certain_segments(a, rate)


def _certain_segments(a: Attribution, rate: float) -> Certainty:
    """Each segment's score against its standard error: two-sided Student's p-values, the discovery rate as above."""
    from scipy.stats import false_discovery_control
    from scipy.stats import t as student

    assert a.segments is not None  # noqa: S101  # asked before
    assert a.standard_error is not None  # noqa: S101
    labels = a.segments[0].cpu().numpy()
    values = a.by_segment.cpu().double().numpy()
    errors = np.zeros_like(values)
    inside = labels >= 0
    errors[labels[inside]] = a.standard_error[0, 0].cpu().double().numpy()[inside]
    known = np.isfinite(values) & np.isfinite(errors)
    # An error of zero is no error: such a value is certain, unless it is zero itself.
    ratio = np.divide(np.abs(values), errors, out=np.where(values == 0, 0.0, np.inf), where=known & (errors > 0))
    free = max(int(a.estimate.state["draws"][0]) - 1, 1)
    p = np.where(known, 2 * student.sf(ratio, free), 1.0)
    passed = np.append(false_discovery_control(p) <= rate, False)
    caption = (
        f"sampling error only, n = {a.samples_used}, segment by segment, false discovery rate {100 * rate:g} %; more "
        "model calls colour more segments; grey does not mean unimportant"
    )
    return Certainty(passed[labels], caption)


def certain_blocks(a: Attribution, *, block: int = 8, rate: float = 0.05) -> Certainty:
    """The blocks of one image's sampled map that hold signal beyond the sampling error.

    Raises:
        ArgumentError: the map was not sampled, or not in independent batches; a setting out of range.
    """
    from scipy.stats import false_discovery_control

    check_count("block", block)
    if not 0 < rate < 1:
        raise ArgumentError(f"`rate` is the expected share of false blocks, between 0 and 1. Got {rate!r}.")
    if len(a) != 1 or a.scores.ndim != 4:
        raise ArgumentError(f"The uncertainty view shows one image's map (1, C, H, W). Got {tuple(a.scores.shape)}.")
    if a.estimate.batch_means is None:
        raise ArgumentError(
            f"The uncertainty view needs independent batches of samples, and {a.recipe.explainer['type']} with these "
            "settings keeps none. A SmoothGrad over any method does."
        )
    coarse = a.features[-1] / a.scores.shape[-1] if len(a.features) == 3 else 1.0
    cells = max(round(block / coarse), 1)  # `block` is in pixels of the input
    n = a.samples_used
    draws = int(a.estimate.state["draws"][0])
    sums = _batch_sums(a.estimate.batch_means[0], draws)
    p = sign_flip_p_values(sums, cells)
    passed = false_discovery_control(p.ravel()).reshape(p.shape) <= rate
    high, wide = a.scores.shape[2:]
    found = np.repeat(np.repeat(passed, cells, 0), cells, 1)[:high, :wide]
    pixels = _tiled(found, a.features[1:]) if len(a.features) == 3 else found
    caption = (
        f"sampling error only, n = {n}, false discovery rate {100 * rate:g} %; more samples colour more blocks; "
        "grey does not mean unimportant"
    )
    return Certainty(pixels, caption)


def sign_flip_p_values(sums: Float[np.ndarray, "k c h w"], block: int) -> Float[np.ndarray, "rows columns"]:
    """For each block the share of the sign patterns that give at least as much power as was found.

    `sums` are the sums over the samples of k independent batches; blocks at the right and lower edge may be smaller.
    """
    k, c, high, wide = sums.shape
    rows, columns = -(-high // block), -(-wide // block)
    padded = np.zeros((k, c, rows * block, columns * block))
    padded[:, :, :high, :wide] = sums
    blocks = (
        padded.reshape(k, c, rows, block, columns, block).transpose(2, 4, 0, 1, 3, 5).reshape(rows * columns, k, -1)
    )
    blocks[~np.isfinite(blocks).all((1, 2))] = 0  # what cannot be tested does not pass
    gram = blocks @ blocks.transpose(0, 2, 1)  # power under signs s is s' G s, so pixels are needed only once
    between = gram[(slice(None), *np.triu_indices(k, 1))]  # the squares in s' G s do not depend on the signs
    found = between.sum(1)
    slack = 1e-9 * np.abs(gram).sum((1, 2))  # the pattern without flips is one of them, and equal up to rounding
    reached = np.zeros(rows * columns)
    products = _sign_products(k)
    for start in range(0, len(products), _PATTERNS_AT_ONCE):
        some = products[start : start + _PATTERNS_AT_ONCE].astype(np.float64)
        reached += (some @ between.T >= found - slack).sum(0)
    return np.asarray((reached / len(products)).reshape(rows, columns))


def _tiled(cells: np.ndarray, sides: tuple[int, ...]) -> np.ndarray:
    """Each pixel as the cell in which its centre lies."""
    rows, columns = (
        np.minimum(((np.arange(side) + 0.5) * count / side).astype(int), count - 1)
        for side, count in zip(sides, cells.shape, strict=True)
    )
    return np.asarray(cells[rows][:, columns])


@cache
def _sign_products(k: int) -> np.ndarray:
    """The products of each two of k signs, (2^(k-1), k (k-1) / 2): all patterns, for s and -s give the same."""
    signs = np.where(np.arange(2 ** (k - 1))[:, None] >> np.arange(k) & 1, -1, 1).astype(np.int8)
    first, second = np.triu_indices(k, 1)
    return signs[:, first] * signs[:, second]


def _batch_sums(means: Tensor, n: int) -> np.ndarray:
    sizes = np.array([len(range(batch, n, BATCHES)) for batch in range(BATCHES)])
    sums = means.cpu().double().numpy() * sizes[:, None, None, None]
    return np.asarray(sums[sizes > 0])

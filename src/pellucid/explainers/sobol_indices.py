"""Sobol total indices: the share of the score's variance that would be left if all segments but one were known.

    S_Tj = E[Var(f(m) | m without j)] / Var f(m),   m ~ U[0, 1]^S        (Fel et al. 2021, equation 4)

f(m) is the score of x' + m (x - x'): each segment is faded towards the baseline x' by a number of its own. Estimated
after Jansen (1999) from pairs of masks A, B and the masks A with the number j of B:

    S_Tj = sum_i (f(A_i) - f(A_i with B_ij))^2 / (2 n V),   V = variance of all f(A_i), f(B_i)

Unsigned, without unit: from 0, of segments that do not matter, to 1; what segments do together counts for each of them,
so that the shares sum to 1 or more. A draw is S + 2 model calls. Draws are independent: the standard error is the
jackknife's, over draws, of the ratio as a whole. (Scrambled Sobol sequences, in replicates that show an error, need too
many draws for each: of five dimensions they were worse than independent draws under a thousand calls.)
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from pellucid.core.card import Applicability, Cost, MethodCard, Needs, Per, Scope, Stage
from pellucid.core.queries import Fit, Question
from pellucid.core.random import uniform
from pellucid.core.stopping import Until, most
from pellucid.explainers._queried import Budgeted, Place, Segmented

__all__ = ["SobolIndices"]

_ROUNDING = 1e-6
"""Scores that differ by less than this share of their size differ by rounding."""

_FEW = 50
"""With fewer draws, intervals miss more often than they say where few masks change the score much."""


@dataclass(frozen=True, kw_only=True)
class SobolIndices(Segmented, Budgeted):
    """Total Sobol indices of segments that are faded towards a baseline (Fel et al. 2021), with their standard errors.

    `segments` divides each input, `baseline` is what they fade to, `budget` counts model calls: a draw is a call for
    each segment and two more, so that few segments are known soon and many late.

    Raises:
        ArgumentError: a setting out of range, or a budget that is too small for so many segments.

    Example:
        >>> import torch, pellucid as pl
        >>> model = pl.FunctionModel(lambda rows: rows @ [1.0, 2.0, 0.0], output="regression")
        >>> a = pl.SobolIndices(baseline=pl.Zeros(), budget=5000)(model, torch.ones(1, 3))
        >>> bool(((a.scores - torch.tensor([0.2, 0.8, 0.0])).abs() <= 4 * a.standard_error).all())
        True
    """

    budget: int | Until = 4096  # the paper's 32 draws of 121 segments take 3936

    @property
    def card(self) -> MethodCard:
        return MethodCard(
            name="sobol-indices",
            title="Sobol indices",
            scope=Scope.LOCAL,
            stage=Stage.POST_HOC,
            applicability=Applicability.MODEL_AGNOSTIC,
            needs=Needs.SCORES,
            cost=Cost(forward=most(self.budget)),
            reference="Fel et al. 2021, arXiv:2111.04138",
            unit="share of the variance",
            per=Per.SEGMENT,
            sampled=True,
            caveats=(
                "without a sign: what speaks for the target and what speaks against it look alike",
                f"under {_FEW} draws, of a call for each segment and two, intervals can be too narrow where few masks "
                "change the score",
            ),
        )

    def question(self, place: Place, calls: int) -> Question:
        return _Faded(place)


class _Faded(Question):
    """Draws of S + 2 masks of numbers in [0, 1): A, B, and A with each number of B."""

    least = 4
    believed = 30  # a few draws that happen to be alike ended one run in thirty, far off

    def __init__(self, place: Place) -> None:
        self.place = place
        self.players = place.players
        self.size = self.players + 2
        self.width = len(place.absent)

    def masks(self, queries: Sequence[int]) -> Float[np.ndarray, "m s"]:
        """How much of each segment is there."""
        which, part = np.divmod(np.asarray(queries), self.size)
        draws, at = np.unique(which, return_inverse=True)
        pairs = np.stack([uniform(self.place.stream, int(draw), 2 * self.players) for draw in draws])
        first, second = pairs[at, : self.players], pairs[at, self.players :]
        changed = (part[:, None] == 1) | (part[:, None] - 2 == np.arange(self.players))
        return np.where(changed, second, first)

    def rows(self, queries: Sequence[int], copies: Sequence[int]) -> Float[Tensor, "m *features"]:
        x = self.place.x
        kept = torch.from_numpy(self.masks(queries)).to(x)
        held = torch.cat([kept, torch.ones_like(kept[:, :1])], 1)  # HELD is the last
        return torch.lerp(self.place.away(copies), x, self.place.spread(held[:, self.place.labels]))

    def fit(self, scores: Float[np.ndarray, " n"]) -> Fit:
        values, variance, level = total_indices(scores.reshape(-1, self.size))
        notes: dict[str, float | str] = {"segments": float(self.players), "variance": level}
        findings = []
        if not np.isfinite(variance).all():
            findings.append(
                "The score hardly changes, or is not known, under these masks: there is no variance to share out. Take "
                "another baseline, or explain the logit instead of a probability that is certain."
            )
        return Fit(values, variance, notes=notes, findings=tuple(findings))


def total_indices(
    scores: Float[np.ndarray, "n parts"],
) -> tuple[Float[np.ndarray, " s"], Float[np.ndarray, " s"], float]:
    """Jansen's total indices, the squared standard error of each (NaN where there is none), and the score's variance.

    A score that could not be had is NaN, and what it belongs to is left out: a comparison, or both where A or B is.
    """
    first, second, changed = scores[:, :1], scores[:, 1:2], scores[:, 2:]
    squares, pairs = _without_unknown((first - changed) ** 2 / 2)
    # Centred once, for the digits: sums of squares are what each draw can be taken out of.
    ends = scores[:, :2] - np.nanmean(scores[:, :2]) if np.isfinite(scores[:, :2]).any() else scores[:, :2]
    ends, known = _without_unknown(np.where(np.isfinite(first + second), ends, np.nan))
    variance, without = _variances(ends, known)
    largest = float(np.nanmax(np.abs(scores))) if known.any() else 0.0
    if not variance > (_ROUNDING * largest) ** 2:
        none = np.zeros(changed.shape[1])
        return none, none * np.nan, 0.0
    total, count = squares.sum(0), pairs.sum(0)
    with np.errstate(divide="ignore", invalid="ignore"):  # a segment, or a draw, of which nothing is known
        values = total / count / variance
        others = (total - squares) / (count - pairs) / without[:, None]  # the whole ratio without each draw
    draws = len(scores)
    spread = (draws - 1) / draws * ((others - others.mean(0)) ** 2).sum(0)
    lost = ~np.isfinite(values)
    return np.where(lost, 0.0, values), np.where(lost | ~np.isfinite(spread), np.nan, spread), variance


def _without_unknown(x: Float[np.ndarray, "n k"]) -> tuple[Float[np.ndarray, "n k"], Float[np.ndarray, "n k"]]:
    """Zero where nothing is known, and 1 where something is."""
    known = np.isfinite(x)
    return np.where(known, x, 0.0), known.astype(np.float64)


def _variances(
    ends: Float[np.ndarray, "n 2"], known: Float[np.ndarray, "n 2"]
) -> tuple[float, Float[np.ndarray, " n"]]:
    """The unbiased variance of all scores of A and B, and the same without each draw."""
    ones, sums, squares = known.sum(1), ends.sum(1), (ends**2).sum(1)
    count, total, square = (np.append(part.sum() - part, part.sum()) for part in (ones, sums, squares))
    found = (square - total**2 / np.maximum(count, 1)) / np.maximum(count - 1, 1)
    return float(found[-1]), found[:-1]

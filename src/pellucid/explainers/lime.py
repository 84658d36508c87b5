"""LIME: the coefficients of a straight surrogate that follows the model on inputs of which segments were taken away.

    b = argmin sum_i w_i (f(z_i) - b_0 - z_i . b)^2 + penalty |b|^2,   w_i = exp(-d_i^2 / width^2)

(Ribeiro et al. 2016, equations 1 and 2.)

z_i has a 1 for each segment that is present: the first mask is the whole input, in the others each segment is present
with probability 1/2. d_i = 1 - sqrt(share that is present) is the cosine distance between z_i and the whole. Signed, in
units of the score: by how much the surrogate rises with the segment. The penalty stands in for the paper's choice of K
features by lasso, as in lime.

The standard error is about the same minimum with the sum over drawn masks replaced by its expectation, for as many of
them and this penalty: a sandwich of what each mask does to b, with its leverage (HC3). As n grows the whole input and
the penalty lose their hold, and that minimum goes to the weighted least squares over all masks; by how much the penalty
still shrinks the coefficients (by an order of penalty / sum of the weights) is in no error.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from pellucid.core.baseline import Baseline
from pellucid.core.card import Applicability, Cost, MethodCard, Needs, Per, Scope, Stage
from pellucid.core.checks import check_number
from pellucid.core.input import Preprocess
from pellucid.core.queries import Fit, Question
from pellucid.core.random import uniform
from pellucid.core.segments import HELD, PatchesOrColumns, Segments, check_segments
from pellucid.core.stopping import Until, most
from pellucid.errors import ArgumentError
from pellucid.explainers._queried import Budgeted, Masked, Place, Segmented

__all__ = ["LIME", "SegmentMean"]

_FOLLOWS = 0.5
"""A surrogate that foretells less of the variance than this does not speak for the model."""

_ROUNDING = 1e-6
"""Scores that differ by less than this share of their size differ by rounding."""


@dataclass(frozen=True)
class SegmentMean(Baseline):
    """Each segment filled with its own mean in each channel: lime's `hide_color=None`. Give it the method's segments.

    Raises:
        ArgumentError: no segments; when used, inputs without axes behind their channels.

    Example:
        >>> import torch, pellucid as pl
        >>> pl.SegmentMean(pl.Patches((1, 2))).values(torch.tensor([[[[1.0, 3.0, 5.0, 6.0]]]]))
        tensor([[[[2.0000, 2.0000, 5.5000, 5.5000]]]])
    """

    segments: Segments = field(default_factory=PatchesOrColumns)

    def __post_init__(self) -> None:
        check_segments(self.segments)

    def values(
        self, x: Float[Tensor, "b *features"], preprocess: Preprocess | None = None
    ) -> Float[Tensor, "b *features"]:
        if x.ndim < 3:
            raise ArgumentError(
                f"A segment's mean is of pictures (B, C, H, W) or signals (B, C, T). Got {tuple(x.shape)}. For tables, "
                "whose columns have one value each, take a Background of rows."
            )
        flat = x.flatten(2)
        labels = self.segments.labels(x, preprocess).flatten(1)[:, None].expand_as(flat)
        held = labels == HELD
        numbers = labels.masked_fill(held, int(labels.max()) + 1)
        sums = flat.new_zeros((*flat.shape[:2], int(numbers.max()) + 1)).scatter_add(2, numbers, flat)
        counts = torch.zeros_like(sums).scatter_add(2, numbers, torch.ones_like(flat))
        means = (sums / counts.clamp(min=1)).gather(2, numbers)
        return torch.where(held, flat, means).view_as(x)


@dataclass(frozen=True, kw_only=True)
class LIME(Segmented, Budgeted):
    """The coefficients of a locally weighted linear surrogate (Ribeiro et al. 2016), with their standard errors.

    `segments` divides each input, `baseline` stands in for what is absent, `budget` counts model calls. `width` is that
    of the kernel, on cosine distances from 0 to 1; `penalty` multiplies the squared length of the coefficients. R2 of
    the surrogate stands in the recipe's notes: `r2` on its own masks, `r2_left_out` on masks that it has not seen.

    Raises:
        ArgumentError: a setting out of range, or a budget that is too small for so many segments.

    Example:
        >>> import torch, pellucid as pl
        >>> model = pl.FunctionModel(lambda rows: rows @ [1.0, 2.0, -1.0], output="regression")
        >>> a = pl.LIME(baseline=pl.Zeros(), penalty=0, budget=100)(model, torch.ones(1, 3))
        >>> a.scores.round(decimals=6).tolist(), a.recipe.notes["r2"]
        ([[1.0, 2.0, -1.0]], [1.0])
    """

    width: float = 0.25
    penalty: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("penalty", self.penalty, least=0)
        check_number("width", self.width, least=0)
        if self.width == 0:
            raise ArgumentError("`width` is over 0: a kernel without width sees the input alone. lime's is 0.25.")

    @classmethod
    def lime(
        cls, segments: Segments | None = None, *, width: float = 0.25, budget: int | Until = 1000, seed: int = 0
    ) -> "LIME":
        """The LimeImageExplainer of lime 0.2.0.1: the square root of the kernel (which is a kernel wider by sqrt(2)),
        ridge with alpha 1 on all segments, each filled with its mean colour. Its own segments are quickshift's.
        """
        chosen = PatchesOrColumns() if segments is None else segments
        wide = width * math.sqrt(2)
        return cls(segments=chosen, baseline=SegmentMean(chosen), width=wide, budget=budget, seed=seed)

    @property
    def card(self) -> MethodCard:
        return MethodCard(
            name="lime",
            title="LIME",
            scope=Scope.LOCAL,
            stage=Stage.POST_HOC,
            applicability=Applicability.MODEL_AGNOSTIC,
            needs=Needs.SCORES,
            cost=Cost(forward=most(self.budget)),
            reference="Ribeiro et al. 2016, arXiv:1602.04938",
            unit="score",
            per=Per.SEGMENT,
            channels="sum",
            sampled=True,
            caveats=(
                "the surrogate speaks for the model only as far as it follows it: read its R2",
                "the width of the kernel decides what is local, and nothing in the data decides the width",
                "tables: columns are present or as in the baseline; lime's own explainer of tables bins the columns, "
                "draws rows from the training data and weighs them by Euclidean distance",
            ),
        )

    def question(self, place: Place, calls: int) -> Question:
        return _Neighbourhood(place, self.width, self.penalty)


class _Neighbourhood(Masked):
    """The whole input, then sets in which each segment is present with probability 1/2."""

    believed = 30  # of few segments and fewer masks, one interval in ten or more missed

    def __init__(self, place: Place, reach: float, penalty: float) -> None:
        super().__init__(place)
        self.reach, self.penalty = reach, penalty
        self.least = self.players + 2

    def masks(self, queries: Sequence[int]) -> np.ndarray:
        drawn = np.stack([uniform(self.place.stream, query, self.players) for query in queries]) < 0.5
        return np.asarray(drawn | (np.asarray(queries)[:, None] == 0))

    def fit(self, scores: Float[np.ndarray, " n"]) -> Fit:
        known = np.isfinite(scores)
        masks = self.masks(range(len(scores)))[known]
        return surrogate(masks, scores[known], self.reach, self.penalty, whole=bool(known[0]))


def surrogate(
    masks: Bool[np.ndarray, "n s"], scores: Float[np.ndarray, " n"], width: float, penalty: float, *, whole: bool
) -> Fit:
    """The coefficients and the squared standard error of each; `whole`: the first mask is the whole input, not drawn.

    In closed form: the error needs the inverse of the normal equations, which scikit-learn's Ridge keeps to itself.
    """
    weights = kernel(masks, width)
    share = weights / weights.sum()
    x, y = masks - share @ masks, scores - share @ scores
    sizes, axes = np.linalg.eigh((x.T * weights) @ x)
    told = sizes > np.finfo(float).eps * len(sizes) * max(float(sizes[-1]), np.finfo(float).tiny)
    inverse = (axes / np.where(told, sizes + penalty, np.inf)) @ axes.T
    values = inverse @ (x.T @ (weights * y))
    residual = y - x @ values
    leverage = weights * np.einsum("ij,jk,ik->i", x, inverse, x) + share
    left_out = residual / np.clip(1 - leverage, 1e-6, None)  # what the fit without a mask would have missed it by
    influence = ((x @ inverse) * (weights * left_out)[:, None])[int(whole) :]
    # The penalty and the whole input have their share in the normal equations: those of the draws do not sum to zero.
    variance = ((influence - influence.mean(0)) ** 2).sum(0)
    # A segment that was there with others, or always, has no coefficient of its own, whatever the penalty makes of it.
    alike = (axes[:, ~told] ** 2).sum(1) > _ROUNDING
    # So few different masks are fitted without a rest, or nearly, from which alone an error is known.
    distinct = len(np.unique(masks, axis=0))
    variance[alike | (distinct < min(len(values) + 2, 2.0 ** len(values)))] = np.nan
    rounding = (_ROUNDING * float(np.abs(scores).max())) ** 2
    if float(weights @ y**2) <= weights.sum() * rounding:  # what is left of a constant score is no map
        values, variance = np.zeros_like(values), np.zeros_like(variance)
    r2, foretold = (_followed(weights, y, rest, rounding) for rest in (residual, left_out))
    notes: dict[str, float | str] = {"segments": float(len(values)), "r2": r2, "r2_left_out": foretold}
    return Fit(values, variance, notes=notes, findings=_findings(alike, r2, foretold, len(scores)))


def _followed(
    weights: Float[np.ndarray, " n"], y: Float[np.ndarray, " n"], rest: Float[np.ndarray, " n"], rounding: float
) -> float:
    """The weighted R2; 1 of scores that differ by rounding alone, of which nothing is left to follow."""
    total = float(weights @ y**2)
    return 1.0 if total <= weights.sum() * rounding else 1 - float(weights @ rest**2) / total


def _findings(alike: Bool[np.ndarray, " s"], r2: float, foretold: float, count: int) -> tuple[str, ...]:
    if alike.any():
        return (
            f"The masks do not tell {int(alike.sum())} of {len(alike)} segments apart from others: their coefficients "
            "are not known. Take more model calls, or a wider kernel.",
        )
    if foretold < _FOLLOWS:
        return (
            f"The surrogate foretells {max(foretold, 0):.0%} of the score's variance on masks that it has not seen (R2 "
            f"{r2:.2f} on its own {count}): the score is no sum over these segments, or the masks are few.",
        )
    return ()


def kernel(masks: Bool[np.ndarray, "n s"], width: float) -> Float[np.ndarray, " n"]:
    """How much each mask counts: by its cosine distance from the whole; the empty one has the distance 1."""
    distance = 1 - np.sqrt(masks.mean(1))
    return np.asarray(np.exp(-((distance / width) ** 2)))

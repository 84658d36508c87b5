"""RISE: the mean of random masks, each weighted by the score of what it keeps.

    M(u) = 1 / (N p) sum_i f(x * m_i) m_i(u) ~ E[f(x * m) | u is kept]        (Petsiuk et al. 2018, eq. 6)

(B, 1, H, W), or (B, 1, T) of signals. In units of the score, which is the probability of the class: never negative,
and everywhere near the mean score of masked inputs, on which the map stands (DebiasedRISE takes it away). The relative
error is that of what stands out, since the constant would make any map look certain.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from pellucid.core.card import Applicability, Cost, MethodCard, Modality, Needs, Per, Scope, Stage
from pellucid.core.queries import Fit, Question
from pellucid.core.stopping import most
from pellucid.explainers._queried import Place
from pellucid.explainers._rise import MaskEstimator, Masks, RandomMasks, of_mean, weighted

__all__ = ["RISE"]


@dataclass(frozen=True)
class _Mean(MaskEstimator):
    """The definition itself."""

    @property
    def words(self) -> str:
        return ""

    def fit(self, scores: Float[np.ndarray, "n size"], masks: Masks) -> Fit:
        s, n, p = scores[:, 0], len(masks), masks.p
        (first, crossed), second = weighted(masks, np.stack([s, s**2], 1))
        total = first + p * s.sum()  # of s m
        squares = second + 2 * p * crossed + p**2 * (s**2).sum()
        independent = int(np.prod(masks.grid.cells))
        contrast = Fit(first / (n * p), of_mean(first, second, n) / p**2, independent)
        return Fit(total / (n * p), of_mean(total, squares, n) / p**2, independent, contrast=contrast)


@dataclass(frozen=True, kw_only=True)
class RISE(RandomMasks):
    """The mean of random masks, each weighted by the score of what it keeps (Petsiuk et al. 2018).

    `cells` is the grid of bits along each axis, `p` the share that masks keep, `baseline` stands in for the rest (the
    paper's masks multiply the input: pl.Zeros() or pl.Pixel(0.0)), and `budget` counts model calls.

    Raises:
        ArgumentError: a setting out of range; when used, inputs without axes behind their channels.

    Example:
        >>> import torch, pellucid as pl
        >>> model = pl.FunctionModel(lambda rows: rows[:, 0, 2:5, 2:5].mean((1, 2)), output="regression")
        >>> a = pl.RISE(budget=400, baseline=pl.Zeros())(model, torch.ones(1, 1, 14, 14))
        >>> tuple(a.scores.shape), bool(a.scores[0, 0, 3, 3] > a.scores[0, 0, 10, 10] > 0)
        ((1, 1, 14, 14), True)
    """

    @property
    def card(self) -> MethodCard:
        return MethodCard(
            name="rise",
            title="RISE",
            scope=Scope.LOCAL,
            stage=Stage.POST_HOC,
            applicability=Applicability.MODEL_AGNOSTIC,
            needs=Needs.SCORES,
            cost=Cost(forward=most(self.budget)),
            reference="Petsiuk et al. 2018, arXiv:1806.07421",
            unit="score",
            per=Per.PIXEL,
            channels="sum",
            stands=True,
            sampled=True,
            modalities=frozenset({Modality.IMAGE, Modality.AUDIO}),
            caveats=(
                "the map stands on the mean score of masked inputs: a place counts by how far it is above it",
                "the baseline decides what absent means",
            ),
        )

    def question(self, place: Place, calls: int) -> Question:
        return self.masking(place, _Mean())

"""Debiased RISE: the covariance of a place's being kept and the score, over random masks.

    M(u) = E[f(x * m) (m(u) - p)] / p = Cov(f(x * m), m(u)) / p        (RISE, Petsiuk et al. 2018, less the mean score)

(B, 1, H, W), or (B, 1, T) of signals. Signed, in units of the score, which is the probability of the class; zero where
the model does not look. The name is that of the quantity; `estimator` says how it is approximated.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
from jaxtyping import Float

from pellucid.core.card import Applicability, Cost, MethodCard, Modality, Needs, Per, Scope, Stage
from pellucid.core.queries import Fit, Question
from pellucid.core.stopping import most
from pellucid.errors import ArgumentError
from pellucid.explainers._queried import Place
from pellucid.explainers._rise import MaskEstimator, Masks, RandomMasks, of_mean, weighted
from pellucid.explainers.paired_gp import PairedGP

__all__ = ["Centred", "DebiasedRISE", "Pairs", "Plain"]


@dataclass(frozen=True)
class Plain(MaskEstimator):
    """The mean of score times (mask - p) over p, as defined; most of its error is that of a constant score.

    Example:
        >>> import pellucid as pl
        >>> pl.DebiasedRISE(estimator=pl.Plain()).estimator.words
        'plain mean'
    """

    @property
    def words(self) -> str:
        return "plain mean"

    def fit(self, scores: Float[np.ndarray, "n size"], masks: Masks) -> Fit:
        return _mean(scores[:, 0], masks)


@dataclass(frozen=True)
class Centred(MaskEstimator):
    """The sample covariance of score and mask over p: the scores less their mean, a control variate that costs nothing.

    Unbiased. The standard error is the jackknife's: what leaving out each mask changes.

    Example:
        >>> import pellucid as pl
        >>> pl.DebiasedRISE(estimator=pl.Centred()).estimator.words
        'centred scores'
    """

    least_draws = 3

    @property
    def words(self) -> str:
        return "centred scores"

    def fit(self, scores: Float[np.ndarray, "n size"], masks: Masks) -> Fit:
        n, p = len(masks), masks.p
        away = scores[:, 0] - scores[:, 0].mean()
        weights = np.stack([away, away**2, np.ones(n)], 1)
        (first, crossed, ones), second = weighted(masks, weights)
        middle = ones / n  # the masks' own mean, less p
        squares = second - 2 * middle * crossed + middle**2 * (away**2).sum()
        spread = np.clip(squares - first**2 / n, 0, None) * n / ((n - 1) * (n - 2) ** 2)
        return Fit(first / ((n - 1) * p), spread / p**2, _independent(masks))


@dataclass(frozen=True)
class Pairs(MaskEstimator):
    """Masks come with their complements, and half the difference of their scores is what is averaged. Only for p = 1/2,
    where a complement is as likely as the mask itself.

    Example:
        >>> import pellucid as pl
        >>> pl.DebiasedRISE(estimator=pl.Pairs()).estimator.words
        'complementary pairs'
    """

    size = 2

    @property
    def words(self) -> str:
        return "complementary pairs"

    def fit(self, scores: Float[np.ndarray, "n size"], masks: Masks) -> Fit:
        return _mean((scores[:, 0] - scores[:, 1]) / 2, masks)


def _mean(weights: Float[np.ndarray, " n"], masks: Masks) -> Fit:
    """The mean of weight times (mask - p) over p, and its variance."""
    n, p = len(masks), masks.p
    (first,), second = weighted(masks, weights[:, None])
    return Fit(first / (n * p), of_mean(first, second, n) / p**2, _independent(masks))


def _independent(masks: Masks) -> int:
    """How many places have an error of their own: as many as there are bits."""
    return int(np.prod(masks.grid.cells))


@dataclass(frozen=True, kw_only=True)
class DebiasedRISE(RandomMasks):
    """The covariance of a place's being kept and the score, over the masks of RISE: its map less what it stands on.

    `cells` is the grid of bits along each axis, `p` the share that masks keep, `baseline` stands in for the rest,
    `budget` counts model calls, and `estimator` says how the covariance is found: Centred(), Pairs(), Plain(), or
    PairedGP() with far less error.

    Raises:
        ArgumentError: a setting out of range, an estimator of pairs with another p than 1/2; when used, inputs without
            axes behind their channels.

    Example:
        >>> import torch, pellucid as pl
        >>> model = pl.FunctionModel(lambda rows: rows[:, 0, 2:5, 2:5].mean((1, 2)), output="regression")
        >>> a = pl.DebiasedRISE(budget=400, baseline=pl.Zeros())(model, torch.ones(1, 1, 14, 14))
        >>> bool(a.scores[0, 0, 3, 3] > 0.1), bool(abs(a.scores[0, 0, 10, 10]) < 0.1)
        (True, True)
    """

    estimator: MaskEstimator = field(default_factory=Centred)
    estimators: ClassVar[Mapping[str, MaskEstimator]] = {
        "auto": PairedGP(),
        "paired-gp": PairedGP(),
        "centred": Centred(),
        "pairs": Pairs(),
        "plain": Plain(),
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        estimator: object = self.estimator
        if not isinstance(estimator, MaskEstimator):
            raise ArgumentError(
                f"`estimator` is one such as Centred() or PairedGP(), with its parentheses. Got {estimator!r}."
            )
        if estimator.size == 2 and self.p != 0.5:
            raise ArgumentError(
                f"{estimator!r} takes masks and their complements, which are as likely only with p=0.5. Got "
                f"p={self.p}. Take Centred()."
            )

    @property
    def card(self) -> MethodCard:
        return MethodCard(
            name="debiased-rise",
            title="Debiased RISE",
            scope=Scope.LOCAL,
            stage=Stage.POST_HOC,
            applicability=Applicability.MODEL_AGNOSTIC,
            needs=Needs.SCORES,
            cost=Cost(forward=most(self.budget)),
            reference="after Petsiuk et al. 2018, arXiv:1806.07421",
            unit="score",
            per=Per.PIXEL,
            channels="sum",
            sampled=True,
            modalities=frozenset({Modality.IMAGE, Modality.AUDIO}),
            caveats=(
                "what is smaller than a cell of the masks is seen as large as one",
                "the baseline decides what absent means",
            ),
        )

    def question(self, place: Place, calls: int) -> Question:
        return self.masking(place, self.estimator)

"""KernelSHAP: Shapley values of segments as a weighted linear regression on the scores of sets of segments.

    phi = argmin sum_i w_i (v(S_i) - v(complement) - sum_j x_ij phi_j)^2,   sum_j phi_j = v(all) - v(none)

x_ij is 1 where segment j is present and -1 where it is absent; w_i is the Shapley kernel over the probability with
which the set was drawn (Lundberg & Lee 2017, theorem 2, with the pairs of Covert & Lee 2021 and the sizes of Musco &
Witter 2025). Signed, in units of the score; the segments' values sum to v(all) - v(none). All sets, and no error, where
the budget allows. The standard error is that of the coefficients over other pairs (the sandwich HC2).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
from jaxtyping import Bool, Float

from pellucid.core.card import MethodCard
from pellucid.core.queries import Fit, Question
from pellucid.errors import ArgumentError
from pellucid.explainers._queried import Budgeted, Place, Segmented
from pellucid.explainers._shapley import AllSets, Game, PairEstimator, all_fit, shapley_card
from pellucid.explainers.paired_gp import PairedGP

__all__ = ["KernelSHAP", "Regression"]


@dataclass(frozen=True)
class Regression(PairEstimator):
    """Weighted least squares with the Shapley kernel; unbiased as the number of pairs grows.

    Example:
        >>> import pellucid as pl
        >>> pl.KernelSHAP().estimator
        Regression()
    """

    def least(self, players: int) -> int:
        return players + 2

    def believed(self, players: int) -> int:
        return 4 * players

    @property
    def words(self) -> str:
        return ""

    def shapley(self, signs: Float[np.ndarray, "n s"], halves: Float[np.ndarray, " n"], place: Place) -> Fit:
        players = signs.shape[1]
        change = 2 * halves[0]
        notes: dict[str, float | str] = {"segments": float(players)}
        x, y = signs[1:], 2 * halves[1:]
        sizes = (x > 0).sum(1)
        weights = 1 / (sizes * (players - sizes))
        # The sum is given: what is left of each is orthogonal to it.
        centred = x - x.mean(1, keepdims=True)
        left = y - x.sum(1) * change / players
        gram = (centred.T * weights) @ centred
        whole = gram + gram.trace() / players  # the sum's own direction has no weight in the gram
        inverse = np.linalg.pinv(whole, hermitian=True)
        told = _told(whole)
        phi = inverse @ (centred.T @ (weights * left))
        residual = left - centred @ phi
        leverage = weights * np.einsum("ij,jk,ik->i", centred, inverse, centred)
        # Of a fit, residuals are too small by the root of one minus the leverage (HC2, MacKinnon & White 1985).
        moved = (centred @ inverse) * (weights * residual / np.sqrt(np.clip(1 - leverage, 1e-6, None)))[:, None]
        variance = np.where(told, (moved**2).sum(0), np.nan)
        findings = []
        if alike := int((~told).sum()):
            findings.append(
                f"{alike} segments cannot be told from each other by the sets that have scores; they have no error."
            )
        elif (distinct := len(np.unique(x * x[:, :1], axis=0))) < min(players, 2 ** (players - 1) - 1):
            # As many values fit them without a rest, from which alone an error is known.
            variance = np.full(players, np.nan)
            findings.append(
                f"{distinct} different pairs of sets fit {players} segments in any case: no error is known."
            )
        return Fit(phi + change / players, variance, change=float(change), notes=notes, findings=tuple(findings))


@dataclass(frozen=True, kw_only=True)
class KernelSHAP(Segmented, Budgeted):
    """Shapley values of segments (Lundberg & Lee 2017), exact where 2^segments model calls are within the budget.

    `segments` divides each input, `baseline` stands in for what is absent, `budget` counts model calls, and `estimator`
    says how the values follow from pairs of complementary sets: Regression(), or PairedGP() with far less error.

    Raises:
        ArgumentError: a setting out of range, or a budget that is too small for so many segments.

    Example:
        >>> import torch, pellucid as pl
        >>> model = pl.FunctionModel(lambda rows: rows @ [1.0, 2.0, -1.0], output="regression")
        >>> a = pl.KernelSHAP(baseline=pl.Zeros())(model, torch.ones(1, 3))
        >>> a.scores.round(decimals=6).tolist(), a.stopped
        ([[1.0, 2.0, -1.0]], 'exact after all 8 calls that there are')
    """

    estimator: PairEstimator = field(default_factory=Regression)
    estimators: ClassVar[Mapping[str, PairEstimator]] = {
        "auto": PairedGP(),
        "paired-gp": PairedGP(),
        "regression": Regression(),
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.estimator, PairEstimator):
            raise ArgumentError(
                f"`estimator` is one such as Regression() or PairedGP(), with its parentheses. Got {self.estimator!r}."
            )

    @property
    def card(self) -> MethodCard:
        return shapley_card("kernel-shap", "KernelSHAP", "Lundberg & Lee 2017, arXiv:1705.07874", self.budget)

    def question(self, place: Place, calls: int) -> Question:
        return AllSets(place) if all_fit(place, calls) else Game(place, self.estimator)


def _told(gram: Float[np.ndarray, "s s"]) -> Bool[np.ndarray, " s"]:
    """Which unknowns of the normal equations are determined."""
    values, vectors = np.linalg.eigh(gram)
    free = vectors[:, values < values.max() * len(gram) * np.finfo(np.float64).eps * 10]
    return np.asarray((free**2).sum(1) < np.sqrt(np.finfo(np.float64).eps))

"""PairedGP: the estimator with the least error for a number of model calls, of Shapley values and of debiased RISE.

Both see only the odd part of the model, h(S) = (f(S) - f(complement of S)) / 2, so that sets are asked in
complementary pairs. A Gaussian process with an odd kernel is fitted to h, its kernels' weights by marginal likelihood;
the explanation is an exact linear functional of its posterior mean, and its squared standard error that functional's
posterior variance. The error is the process' own: where it predicts less than 15 % of the power of left-out scores,
none is shown.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from pellucid.core.queries import Fit
from pellucid.explainers._queried import Place
from pellucid.explainers._rise import MaskEstimator, Masks
from pellucid.explainers._rise_process import rise_fit
from pellucid.explainers._shapley import PairEstimator
from pellucid.explainers._shapley_process import neighbourhood, no_neighbours, shapley_fit

__all__ = ["PairedGP"]

_LEAST = 8
_BELIEVED = 32
"""A dozen weights are known too badly from fewer pairs for the error to stop by."""


@dataclass(frozen=True)
class PairedGP(PairEstimator, MaskEstimator):
    """A Gaussian process on the half-differences of complementary pairs.

    Example:
        >>> import torch, pellucid as pl
        >>> model = pl.FunctionModel(lambda rows: rows.mean((1, 2, 3)), output="regression")
        >>> explain = pl.KernelSHAP(estimator=pl.PairedGP(), budget=128, baseline=pl.Zeros())
        >>> a = explain(model, torch.ones(1, 1, 14, 14))
        >>> bool(((a.scores - 1 / 49).abs() < 4 * a.standard_error).all())
        True
    """

    size = 2
    least_draws, believed_draws = _LEAST, _BELIEVED

    def least(self, players: int) -> int:
        return _LEAST

    def believed(self, players: int) -> int:
        return _BELIEVED

    @property
    def words(self) -> str:
        return "Gaussian process on pairs"

    def shapley(self, signs: Float[np.ndarray, "n s"], halves: Float[np.ndarray, " n"], place: Place) -> Fit:
        table = place.x.ndim == 2
        near = no_neighbours(place.players) if table else neighbourhood(place.labels.cpu().numpy())
        return shapley_fit(signs, halves, near)

    def fit(self, scores: Float[np.ndarray, "n 2"], masks: Masks) -> Fit:
        return rise_fit((scores[:, 0] - scores[:, 1]) / 2, masks)

"""Integrated Gradients: the gradient along the way from a baseline to the input, times the way.

    M_i(x) = (x_i - x'_i) int_0^1 dS(x' + a (x - x')) / dx_i da      (Sundararajan et al. 2017, eq. 1)

Signed, shape of the input, in units of the score: the map sums to S(x) - S(x') (completeness), but for the error of the
integral, which `residual` reports. Gauss-Legendre nodes integrate smooth scores nearly exactly; where the score has
kinks, as with ReLU, more steps are the remedy.
"""

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from pellucid.core.baseline import Baseline, BlackOrZero, Zeros, check_baseline
from pellucid.core.card import Applicability, Cost, MethodCard, Needs, Scope, Stage
from pellucid.core.checks import check_choice, check_count
from pellucid.core.estimate import Estimate
from pellucid.core.explainer import Call, Explainer
from pellucid.core.model import Model
from pellucid.core.target import Targets
from pellucid.explainers._path import change, of_rows, path, telling

__all__ = ["IntegratedGradients"]

Rule = Literal["gauss-legendre", "right", "ends"]


def nodes(rule: Rule, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Where on the way from 0 to 1 the gradient is taken, and how much each counts.

    "right" is the paper's sum, at k / n for k = 1 … n (eq. 3); "ends" are n points at equal distances with both ends.
    """
    if rule == "gauss-legendre":
        at, weights = np.polynomial.legendre.leggauss(count)
        return (at + 1) / 2, weights / 2
    at = np.arange(1, count + 1) / count if rule == "right" else np.linspace(0, 1, count)
    return at, np.full(count, 1 / count)


@dataclass(frozen=True, kw_only=True)
class IntegratedGradients(Explainer):
    """The integral of the gradient from `baseline` to the input (Sundararajan et al. 2017).

    `n_steps` gradients are taken where `rule` says: "gauss-legendre", "right" (the paper's sum) or "ends".

    Raises:
        ArgumentError: no baseline, or a setting out of range.

    Example:
        >>> import torch, pellucid as pl
        >>> net = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2)).double()
        >>> a = pl.IntegratedGradients()(pl.TorchModel(net), torch.rand(1, 3), target=0)
        >>> bool(a.residual.abs() < 1e-9)
        True
    """

    baseline: Baseline = field(default_factory=BlackOrZero)
    n_steps: int = 50
    rule: Rule = "gauss-legendre"

    def __post_init__(self) -> None:
        check_baseline(self.baseline)
        check_count("n_steps", self.n_steps, least=2 if self.rule == "ends" else 1)
        check_choice("rule", self.rule, ("gauss-legendre", "right", "ends"))

    @classmethod
    def captum(cls) -> "IntegratedGradients":
        """Captum 0.9: 50 Gauss-Legendre nodes, from zero in the model's units."""
        return cls(baseline=Zeros())

    @classmethod
    def pair(cls) -> "IntegratedGradients":
        """PAIR saliency 0.2.1: 25 points with both ends, from zero in the model's units."""
        return cls(baseline=Zeros(), n_steps=25, rule="ends")

    @classmethod
    def zennit(cls) -> "IntegratedGradients":
        """Zennit 0.5: the right sum of 20 points, from zero in the model's units."""
        return cls(baseline=Zeros(), n_steps=20, rule="right")

    @property
    def card(self) -> MethodCard:
        return MethodCard(
            name="integrated-gradients",
            title="Integrated Gradients",
            scope=Scope.LOCAL,
            stage=Stage.POST_HOC,
            applicability=Applicability.MODEL_AGNOSTIC,
            needs=Needs.SCORES | Needs.GRADIENTS,
            cost=Cost(forward=self.n_steps + 2, backward=self.n_steps),
            reference="Sundararajan et al. 2017, arXiv:1703.01365",
            unit="score",
            channels="sum",
            caveats=(
                "agnostic among differentiable models only",
                "what equals the baseline gets zero: the choice of the baseline decides what can be seen",
            ),
        )

    def attribute(self, model: Model, x: Float[Tensor, "b *features"], targets: Targets, call: Call) -> Estimate:
        at, weights = nodes(self.rule, self.n_steps)
        along = path(self.baseline, model, x)
        mean = torch.zeros(x.shape, dtype=torch.float64, device=x.device)
        tell = telling(call, len(x) * self.n_steps)
        for which, step, points in along.points(torch.from_numpy(at), model.rows(x, maps=1)):
            gradient = model.gradient(points, of_rows(targets, which))
            share = torch.from_numpy(weights)[step].to(x.device).view(-1, *(1,) * (x.ndim - 1))
            mean.index_add_(0, which.to(x.device), gradient * share)
            tell(len(which))
        whole = change(model, along, targets)
        scores = along.whole.double() * mean
        residual = scores.flatten(1).sum(1) - whole
        return Estimate.exact(scores.to(gradient.dtype), residual=residual, notes={"change": tuple(whole.tolist())})

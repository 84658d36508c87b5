"""Expected Gradients: Integrated Gradients averaged over baselines, sampled.

    M(x) = E_{x' ~ D, a ~ U(0, 1)} [ (x - x') dS(x' + a (x - x')) / dx ]      (Erion et al. 2021, eq. 3)

Signed, shape of the input, in units of the score; the map sums to S(x) - E S(x'), within its standard error. It is what
the shap package's GradientExplainer computes. With noise on the input (Captum's GradientShap) it is
`SmoothGrad(base=ExpectedGradients(n_samples=1))`.
"""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from pellucid.core.card import Applicability, Cost, MethodCard, Needs, Scope, Stage
from pellucid.core.estimator import Mean
from pellucid.core.model import Model
from pellucid.core.target import Targets
from pellucid.explainers._background import OverBaselines

__all__ = ["ExpectedGradients"]


@dataclass(frozen=True, kw_only=True)
class ExpectedGradients(OverBaselines):
    """The expectation of Integrated Gradients over several baselines (Erion et al. 2021), with its standard error.

    `baselines` is a Background (inputs of a data set), or a tuple of Baselines.

    Raises:
        ArgumentError: no baselines, or a setting out of range.

    Example:
        >>> import torch, pellucid as pl
        >>> model, x = pl.TorchModel(torch.nn.Linear(3, 2)), torch.rand(1, 3)
        >>> a = pl.ExpectedGradients(baselines=pl.Background.of(torch.rand(20, 3)), n_samples=50)(model, x, 0)
        >>> a.scores.shape == a.standard_error.shape
        True
    """

    @property
    def card(self) -> MethodCard:
        return MethodCard(
            name="expected-gradients",
            title="Expected Gradients",
            scope=Scope.LOCAL,
            stage=Stage.POST_HOC,
            applicability=Applicability.MODEL_AGNOSTIC,
            needs=Needs.SCORES | Needs.GRADIENTS,
            cost=Mean().cost(Cost(forward=1, backward=1), self.n_samples),
            reference="Erion et al. 2021, arXiv:1906.10670",
            unit="score",
            channels="sum",
            sampled=True,
            caveats=("agnostic among differentiable models only", "the baselines decide what can be seen"),
        )

    def contributions(
        self,
        model: Model,
        x: Float[Tensor, "m *features"],
        start: Float[Tensor, "m *features"],
        numbers: Float[Tensor, " m"],
        targets: Targets,
    ) -> Float[Tensor, "m *features"]:
        alpha = numbers.to(x).view(-1, *(1,) * (x.ndim - 1))
        whole = x - start
        return whole * model.gradient(start + alpha * whole, targets)

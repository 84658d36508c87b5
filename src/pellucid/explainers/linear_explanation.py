"""Linear explanation: the coefficients of a linear model, which is its own explanation.

    f_k(x) = sum_j w_kj x_j + b_k,   M_k = w_k

One row for each output k, signed, in units of the output per unit of feature j. Exact, for every input at once: the
reference point of the taxonomy (intrinsic, global, white-box, model-specific).
"""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from pellucid.core.card import Applicability, Cost, MethodCard, Needs, Scope, Stage
from pellucid.core.estimate import Estimate
from pellucid.core.explainer import GlobalExplainer
from pellucid.core.model import Model

__all__ = ["LinearExplanation"]


@dataclass(frozen=True)
class LinearExplanation(GlobalExplainer):
    """The coefficients of a torch `Linear` or of a scikit-learn linear estimator (pl.SklearnModel).

    Example:
        >>> import torch, pellucid as pl
        >>> net = torch.nn.Linear(3, 2)
        >>> torch.equal(pl.LinearExplanation()(pl.TorchModel(net)).scores, net.weight)
        True
    """

    @property
    def card(self) -> MethodCard:
        return MethodCard(
            name="linear-explanation",
            title="Linear explanation",
            scope=Scope.GLOBAL,
            stage=Stage.INTRINSIC,
            applicability=Applicability.MODEL_SPECIFIC,
            needs=Needs.WEIGHTS,
            cost=Cost(forward=2),  # to check that the outputs are W x + b
            reference="Molnar 2022, Interpretable Machine Learning, 5.1",
            caveats=(
                "coefficients compare only between features of one scale",
                "correlated features share their influence in arbitrary parts",
            ),
        )

    def explain(self, model: Model, data: Float[Tensor, "b *features"] | None) -> Estimate:
        weights, _ = model.coefficients()
        return Estimate.exact(weights)

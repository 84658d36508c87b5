"""DeepLIFT-SHAP: the mean of DeepLIFT over baselines, which approximates Shapley values.

    M_i(x) = E_x' [ m_i(x, x') (x_i - x'_i) ]        (Lundberg & Lee 2017, section 4.2; Chen et al. 2021, eq. 10)

Signed, shape of the input, in units of the score. Each sample draws one baseline, so that each value has its standard
error; the map sums to S(x) less the mean score of the baselines that were drawn.
"""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from pellucid.core.card import Applicability, Cost, MethodCard, Needs, Scope, Stage
from pellucid.core.estimator import Mean
from pellucid.core.model import Model
from pellucid.core.stopping import Until
from pellucid.core.target import Targets
from pellucid.explainers._background import OverBaselines
from pellucid.explainers._compared import Compared

__all__ = ["DeepLIFTSHAP"]


@dataclass(frozen=True, kw_only=True)
class DeepLIFTSHAP(OverBaselines):
    """The expectation of DeepLIFT over several baselines (Lundberg & Lee 2017), with its standard error.

    `baselines` is a Background (inputs of a data set), or a tuple of Baselines.

    Raises:
        ArgumentError: no baselines, or a setting out of range.
        RuleError: the network executes an operation that has no rule.

    Example:
        >>> import torch, pellucid as pl
        >>> model, x = pl.TorchModel(torch.nn.Linear(3, 2)), torch.rand(1, 3)
        >>> a = pl.DeepLIFTSHAP(baselines=pl.Background.of(torch.rand(20, 3)), n_samples=50)(model, x, 0)
        >>> a.scores.shape == a.standard_error.shape
        True
    """

    n_samples: int | Until = 50

    @property
    def card(self) -> MethodCard:
        return MethodCard(
            name="deep-lift-shap",
            title="DeepLIFT-SHAP",
            scope=Scope.LOCAL,
            stage=Stage.POST_HOC,
            applicability=Applicability.MODEL_SPECIFIC,
            needs=Needs.SCORES | Needs.GRADIENTS | Needs.OPERATIONS,
            cost=Mean().cost(Cost(forward=2, backward=1), self.n_samples),
            reference="Lundberg & Lee 2017, arXiv:1705.07874",
            unit="score",
            channels="sum",
            sampled=True,
            caveats=("networks of operations that have rules", "the baselines decide what can be seen"),
        )

    def contributions(
        self,
        model: Model,
        x: Float[Tensor, "m *features"],
        start: Float[Tensor, "m *features"],
        numbers: Float[Tensor, " m"],
        targets: Targets,
    ) -> Float[Tensor, "m *features"]:
        return (x - start) * model.rule_pass(x, targets, Compared(), start).messages

"""Simple Gradient: how the explained score changes with each feature, at the input itself.

    M(x) = dS_c(x) / dx        (Simonyan, Vedaldi & Zisserman 2013, section 3)

Signed, shape of the input, in units of the score per unit of the input tensor. Simonyan's picture, the maximum of |M|
over the channels, is a matter of drawing (`max_abs`). Cheap and noisy: nearly the same input gets another map.
"""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from pellucid.core.card import Applicability, Cost, MethodCard, Needs, Scope, Stage
from pellucid.core.estimate import Estimate
from pellucid.core.explainer import Call, Explainer
from pellucid.core.model import Ask, Model
from pellucid.core.target import Targets

__all__ = ["SimpleGradient"]


@dataclass(frozen=True)
class SimpleGradient(Explainer):
    """The gradient of the target with respect to the input (Simonyan et al. 2013).

    Example:
        >>> import torch, pellucid as pl
        >>> net = torch.nn.Linear(3, 2)
        >>> a = pl.SimpleGradient()(pl.TorchModel(net), torch.ones(1, 3), target=1)
        >>> torch.equal(a.scores[0], net.weight[1])
        True
    """

    @property
    def card(self) -> MethodCard:
        return MethodCard(
            name="simple-gradient",
            title="Simple Gradient",
            scope=Scope.LOCAL,
            stage=Stage.POST_HOC,
            applicability=Applicability.MODEL_AGNOSTIC,
            needs=Needs.SCORES | Needs.GRADIENTS,
            cost=Cost(forward=1, backward=1),
            reference="Simonyan et al. 2013, arXiv:1312.6034",
            caveats=("agnostic among differentiable models only", "noisy: shattered by piecewise-linear networks"),
        )

    def asks(self, model: Model, x: Float[Tensor, "b *features"]) -> Ask:
        return Ask()

    def attribute(self, model: Model, x: Float[Tensor, "b *features"], targets: Targets, call: Call) -> Estimate:
        return Estimate.exact(model.gradient(x, targets))

"""Input x Gradient: what each feature adds to a score that is linear in the input.

    M(x) = x * dS(x) / dx        (Shrikumar et al. 2016, arXiv:1605.01713, section 3.2)

Signed, shape of the input, in units of the score. A feature that is zero in the model's units gets zero, whatever it
means: of a normalised image that is the mean colour.
"""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from pellucid.core.card import Applicability, Cost, MethodCard, Needs, Scope, Stage
from pellucid.core.estimate import Estimate
from pellucid.core.explainer import Call, Explainer
from pellucid.core.model import Ask, Model
from pellucid.core.target import Targets

__all__ = ["InputXGradient"]


@dataclass(frozen=True)
class InputXGradient(Explainer):
    """The input times the gradient of the target (Shrikumar et al. 2016).

    Example:
        >>> import torch, pellucid as pl
        >>> net, x = torch.nn.Linear(3, 2), torch.rand(1, 3)
        >>> a = pl.InputXGradient()(pl.TorchModel(net), x, target=1)
        >>> torch.equal(a.scores[0], x[0] * net.weight[1])
        True
    """

    @property
    def card(self) -> MethodCard:
        return MethodCard(
            name="input-x-gradient",
            title="Input x Gradient",
            scope=Scope.LOCAL,
            stage=Stage.POST_HOC,
            applicability=Applicability.MODEL_AGNOSTIC,
            needs=Needs.SCORES | Needs.GRADIENTS,
            cost=Cost(forward=1, backward=1),
            reference="Shrikumar et al. 2016, arXiv:1605.01713",
            unit="score",
            channels="sum",
            caveats=("agnostic among differentiable models only", "zero where the model's input is zero"),
        )

    def asks(self, model: Model, x: Float[Tensor, "b *features"]) -> Ask:
        return Ask()

    def attribute(self, model: Model, x: Float[Tensor, "b *features"], targets: Targets, call: Call) -> Estimate:
        gradient = model.gradient(x, targets)
        return Estimate.exact(x.to(gradient.dtype) * gradient)

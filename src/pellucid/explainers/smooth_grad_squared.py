"""SmoothGrad-Squared: the mean of squared maps over noisy copies of the input.

    M(x) = 1/n sum_i g(x + e_i)^2        (Hooker et al. 2019, section 4.2)

Non-negative, in squared units of the base's map. Noise does not cancel: E[g^2] = E[g]^2 + Var[g].
"""

from dataclasses import dataclass, replace

from jaxtyping import Float
from torch import Tensor

from pellucid.core.card import MethodCard
from pellucid.core.estimate import Estimate
from pellucid.core.explainer import Call
from pellucid.core.model import Model
from pellucid.core.target import Targets
from pellucid.explainers._noise import NoisyCopies
from pellucid.explainers.pointwise import Squared, squared
from pellucid.explainers.smooth_grad import SmoothGrad

__all__ = ["SmoothGradSquared"]


@dataclass(frozen=True, kw_only=True)
class SmoothGradSquared(NoisyCopies):
    """The mean of the squared maps of `base` over noisy copies (Hooker et al. 2019).

    Example:
        >>> import torch, pellucid as pl
        >>> net = torch.nn.Linear(3, 2)
        >>> a = pl.SmoothGradSquared(n_samples=4)(pl.TorchModel(net), torch.rand(1, 3), target=1)
        >>> torch.allclose(a.scores[0], net.weight[1] ** 2)
        True
    """

    @property
    def card(self) -> MethodCard:
        title, cost = "SmoothGrad-Squared", self._mean.card.cost
        card = self.card_over("smooth-grad-squared", title, "Hooker et al. 2019, arXiv:1806.10758", cost)
        return replace(card, unit=squared(card.unit))

    @property
    def _mean(self) -> SmoothGrad:
        return SmoothGrad(
            base=Squared(base=self.base), noise_level=self.noise_level, n_samples=self.n_samples, seed=self.seed
        )

    def attribute(self, model: Model, x: Float[Tensor, "b *features"], targets: Targets, call: Call) -> Estimate:
        return self._mean.attribute(model, x, targets, call)

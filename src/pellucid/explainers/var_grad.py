"""VarGrad: the variance of a method's maps over noisy copies of the input.

    M(x) = 1/(n-1) sum_i (g_i - mean g)^2,   g_i = g(x + e_i)        (Adebayo et al. 2018, section 2.2)

Non-negative, in squared units of the base's map: where the map is unstable, not where it is large.
"""

from dataclasses import dataclass, replace

from jaxtyping import Float
from torch import Tensor

from pellucid.core.card import MethodCard
from pellucid.core.estimate import Estimate
from pellucid.core.estimator import Variance
from pellucid.core.explainer import Call
from pellucid.core.model import Model
from pellucid.core.stopping import check_samples
from pellucid.core.target import Targets
from pellucid.errors import ArgumentError
from pellucid.explainers._noise import NoisyCopies
from pellucid.explainers.pointwise import squared

__all__ = ["VarGrad"]


@dataclass(frozen=True, kw_only=True)
class VarGrad(NoisyCopies):
    """The unbiased variance of the maps of `base` over at least two noisy copies (Adebayo et al. 2018).

    Example:
        >>> import torch, pellucid as pl
        >>> a = pl.VarGrad(n_samples=4)(pl.TorchModel(torch.nn.Linear(3, 2)), torch.rand(1, 3))
        >>> float(a.scores.abs().max())  # the gradient of a linear network is the same everywhere
        0.0
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        check_samples(self.n_samples, least=2)
        if self.noise.clean_copy:
            raise ArgumentError(
                "VarGrad is the variance over noisy copies; a clean copy among them is another quantity."
            )

    @property
    def card(self) -> MethodCard:
        cost = Variance().cost(self.base.card.cost, self.n_samples)
        card = self.card_over("var-grad", "VarGrad", "Adebayo et al. 2018, arXiv:1810.03292", cost)
        return replace(card, unit=squared(card.unit))

    def attribute(self, model: Model, x: Float[Tensor, "b *features"], targets: Targets, call: Call) -> Estimate:
        return self.estimated(Variance(), model, x, targets, call, self.n_samples)

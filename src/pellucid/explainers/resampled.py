"""Another method's map at another resolution, or in another range: what some libraries do before they hand a map out.

pellucid's own maps are raw and drawing enlarges and scales them; these wrappers are for the named conventions, and for
averaging maps of layers with different grids.
"""

from dataclasses import dataclass, field, replace

from jaxtyping import Float
from torch import Tensor

from pellucid.core.card import MethodCard, Per
from pellucid.core.estimate import Estimate
from pellucid.core.explainer import Call, Explainer
from pellucid.core.model import Ask, Model
from pellucid.core.target import Targets
from pellucid.errors import ArgumentError
from pellucid.explainers._activation_map import check_pictures, resized
from pellucid.explainers.simple_gradient import SimpleGradient

__all__ = ["MinMax", "Upsampled"]


def _check_exact(base: object) -> None:
    """Raises ArgumentError for what would lose the error of a sampled map."""
    if not isinstance(base, Explainer) or base.card.sampled:
        raise ArgumentError(
            f"`base` is an explainer that samples nothing, such as GradCAM(). Got {base!r}. To smooth, put SmoothGrad "
            "around it."
        )


@dataclass(frozen=True, kw_only=True)
class Upsampled(Explainer):
    """A map of cells at the resolution of the input, by linear interpolation between the centres of the cells.

    Example:
        >>> import torch, pellucid as pl
        >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 2, 2), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
        >>> pl.Upsampled(base=pl.GradCAM())(pl.TorchModel(net), torch.rand(1, 3, 8, 8), 0).scores.shape
        torch.Size([1, 1, 8, 8])
    """

    base: Explainer = field(default_factory=SimpleGradient)

    def __post_init__(self) -> None:
        _check_exact(self.base)

    @property
    def card(self) -> MethodCard:
        card = self.base.card
        per = Per.PIXEL if card.per is Per.CELL else card.per
        return replace(card, name=f"upsampled-{card.name}", title=f"up-sampled {card.title}", sampled=False, per=per)

    def check_features(self, features: tuple[int, ...]) -> None:
        self.base.check_features(features)

    def asks(self, model: Model, x: Float[Tensor, "b *features"]) -> Ask | None:
        return self.base.asks(model, x)

    def attribute(self, model: Model, x: Float[Tensor, "b *features"], targets: Targets, call: Call) -> Estimate:
        found = self.base.attribute(model, x, targets, call)
        if self.base.card.per is not Per.CELL:
            return Estimate.exact(found.values, notes=found.notes)
        check_pictures(self.card.title, model.features(x))
        return Estimate.exact(resized(found.values, model.features(x)[1:]), notes=found.notes)


@dataclass(frozen=True, kw_only=True)
class MinMax(Explainer):
    """A map stretched from its least value, which becomes 0, to its greatest, which becomes nearly 1.

        M' = (M - min M) / (1e-7 + max (M - min M))

    As the grad-cam package does: pure noise becomes a full-range picture.

    Example:
        >>> import torch, pellucid as pl
        >>> a = pl.MinMax(base=pl.SimpleGradient())(pl.TorchModel(torch.nn.Linear(3, 2)), torch.rand(1, 3), 0)
        >>> float(a.scores.min())
        0.0
    """

    base: Explainer = field(default_factory=SimpleGradient)

    def __post_init__(self) -> None:
        _check_exact(self.base)

    @property
    def card(self) -> MethodCard:
        card = self.base.card
        return replace(
            card,
            name=f"min-max-{card.name}",
            title=f"min-max {card.title}",
            unit="share of the range",
            channels="max_abs",
            sampled=False,
        )

    def check_features(self, features: tuple[int, ...]) -> None:
        self.base.check_features(features)

    def asks(self, model: Model, x: Float[Tensor, "b *features"]) -> Ask | None:
        return self.base.asks(model, x)

    def attribute(self, model: Model, x: Float[Tensor, "b *features"], targets: Targets, call: Call) -> Estimate:
        found = self.base.attribute(model, x, targets, call)
        axes = tuple(range(1, found.values.ndim))
        above = found.values - found.values.amin(axes, keepdim=True)
        return Estimate.exact(above / (1e-7 + above.amax(axes, keepdim=True)), notes=found.notes)

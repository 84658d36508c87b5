"""Guided Grad-CAM: guided backpropagation where Grad-CAM sees something.

    M = GuidedBackprop * upsampled(GradCAM)        (Selvaraju et al. 2017, section 3.2)

Signed, shape of the input. Grad-CAM says where, in the cells of a layer, guided backpropagation draws it finely. Of
several inputs it is that which has places; the others keep what guided backpropagation gives.
"""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from pellucid.core.card import Applicability, Cost, MethodCard, Modality, Scope, Stage
from pellucid.core.estimate import Estimate
from pellucid.core.explainer import Call, Explainer
from pellucid.core.model import Model
from pellucid.core.target import Targets
from pellucid.explainers._activation_map import check_pictures
from pellucid.explainers.grad_cam import GradCAM
from pellucid.explainers.guided_backprop import GuidedBackprop
from pellucid.explainers.resampled import Upsampled

__all__ = ["GuidedGradCAM"]


@dataclass(frozen=True, kw_only=True)
class GuidedGradCAM(Explainer):
    """Guided backpropagation times the enlarged Grad-CAM of `layer`, by default the last with a grid of cells.

    Raises:
        RuleError: the network executes no rectifier.
        LayerError: the network has no such layer, or none with a grid of cells.

    Example:
        >>> import torch, pellucid as pl
        >>> net = torch.nn.Sequential(
        ...     torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()
        ... )
        >>> pl.GuidedGradCAM()(pl.TorchModel(net), torch.rand(1, 3, 8, 8), target=0).scores.shape
        torch.Size([1, 3, 8, 8])
    """

    layer: str | tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        GradCAM(layer=self.layer)

    @property
    def card(self) -> MethodCard:
        return MethodCard(
            name="guided-grad-cam",
            title="Guided Grad-CAM",
            scope=Scope.LOCAL,
            stage=Stage.POST_HOC,
            applicability=Applicability.MODEL_SPECIFIC,
            needs=GradCAM().card.needs | GuidedBackprop().card.needs,
            cost=Cost(forward=2, backward=2),
            reference="Selvaraju et al. 2017, arXiv:1610.02391",
            unit="score, up to a factor",
            modalities=frozenset({Modality.IMAGE, Modality.AUDIO}),
            caveats=(
                "networks with rectifiers and a layer of cells only",
                "its fine lines are guided backpropagation's",
            ),
        )

    def attribute(self, model: Model, x: Float[Tensor, "b *features"], targets: Targets, call: Call) -> Estimate:
        check_pictures(self.card.title, model.features(x))
        cam = Upsampled(base=GradCAM(layer=self.layer)).attribute(model, x, targets, call)
        guided = GuidedBackprop().attribute(model, x, targets, call)
        packing = model.packing
        if packing is None:
            return Estimate.exact(guided.values * cam.values, notes=cam.notes)
        parts = list(packing.parts(guided.values).values())
        parts[packing.drawn] = parts[packing.drawn] * cam.values
        return Estimate.exact(packing.packed(parts), notes=cam.notes)

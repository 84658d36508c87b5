"""Grad-CAM: a layer's channels weighed by the mean gradient of the score by each.

    M = ReLU(sum_k a_k A_k),   a_k = 1/Z sum_ij dS/dA_k,ij        (Selvaraju et al. 2017, eq. 1 and 2)

One number for each cell of the layer, 0 or more, in units of the score up to a factor. S is the logit.
"""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from pellucid.core.card import MethodCard
from pellucid.core.explainer import Explainer
from pellucid.explainers._activation_map import GradientWeighted, card_of, over_cells
from pellucid.explainers.resampled import MinMax, Upsampled

__all__ = ["GradCAM", "SignedGradCAM"]

_REFERENCE = "Selvaraju et al. 2017, arXiv:1610.02391"


@dataclass(frozen=True, kw_only=True)
class GradCAM(GradientWeighted):
    """The layer's channels weighed by their mean gradient, what speaks against the target cut off (Selvaraju 2017).

    Raises:
        LayerError: the network has no such layer, or none with a grid of cells.

    Example:
        >>> import torch, pellucid as pl
        >>> net = torch.nn.Sequential(
        ...     torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()
        ... )
        >>> pl.GradCAM()(pl.TorchModel(net), torch.rand(1, 3, 8, 8), target=0).scores.shape
        torch.Size([1, 1, 6, 6])
    """

    @classmethod
    def captum(cls, layer: str | None = None) -> "SignedGradCAM":
        """Captum 0.9's LayerGradCam: without the ReLU."""
        return SignedGradCAM(layer=layer)

    @classmethod
    def grad_cam(cls, layer: str | None = None) -> Explainer:
        """grad-cam 1.5.7: from least to greatest stretched to 0 … 1, at the input's resolution, and stretched again."""
        return MinMax(base=Upsampled(base=MinMax(base=cls(layer=layer))))

    @property
    def card(self) -> MethodCard:
        return card_of("grad-cam", "Grad-CAM", _REFERENCE)

    def weights(
        self, activation: Float[Tensor, "b k *cells"], gradient: Float[Tensor, "b k *cells"]
    ) -> Float[Tensor, "b k *places"]:
        return gradient.mean(over_cells(gradient), keepdim=True)


@dataclass(frozen=True, kw_only=True)
class SignedGradCAM(GradCAM):
    """Grad-CAM before its ReLU: what speaks for the target and, negative, what speaks against it.

    Example:
        >>> import torch, pellucid as pl
        >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
        >>> model, x = pl.TorchModel(net), torch.rand(1, 3, 8, 8)
        >>> torch.equal(pl.SignedGradCAM()(model, x, 0).scores.clamp(min=0), pl.GradCAM()(model, x, 0).scores)
        True
    """

    rectified: ClassVar[bool] = False

    @property
    def card(self) -> MethodCard:
        return card_of("signed-grad-cam", "Signed Grad-CAM", _REFERENCE, signed=True)

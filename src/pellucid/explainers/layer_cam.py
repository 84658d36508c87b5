"""LayerCAM: positive gradients weigh each cell of each channel by itself, so that early layers give fine maps.

M = ReLU(sum_k ReLU(dS/dA_k) * A_k)        (Jiang et al. 2021, eq. 7 and 8)
"""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from pellucid.core.card import MethodCard
from pellucid.explainers._activation_map import GradientWeighted, card_of

__all__ = ["LayerCAM"]


@dataclass(frozen=True, kw_only=True)
class LayerCAM(GradientWeighted):
    """The positive gradient by a layer times what it gives, summed over its channels (Jiang et al. 2021).

    Example:
        >>> import torch, pellucid as pl
        >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
        >>> pl.LayerCAM()(pl.TorchModel(net), torch.rand(1, 3, 8, 8), target=0).scores.shape
        torch.Size([1, 1, 6, 6])
    """

    @property
    def card(self) -> MethodCard:
        return card_of("layer-cam", "LayerCAM", "Jiang et al. 2021, doi:10.1109/TIP.2021.3089943")

    def weights(
        self, activation: Float[Tensor, "b k *cells"], gradient: Float[Tensor, "b k *cells"]
    ) -> Float[Tensor, "b k *places"]:
        return gradient.clamp(min=0)

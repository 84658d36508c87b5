"""XGrad-CAM: a layer's channels weighed by the gradient where they are active.

M = ReLU(sum_k w_k A_k),   w_k = sum_ij (A_k,ij / sum_ab A_k,ab) dS/dA_k,ij        (Fu et al. 2020, eq. 8)
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from pellucid.core.card import MethodCard
from pellucid.explainers._activation_map import GradientWeighted, card_of, over_cells

__all__ = ["XGradCAM"]


@dataclass(frozen=True, kw_only=True)
class XGradCAM(GradientWeighted):
    """Grad-CAM whose mean gradient is weighed by the activation (Fu et al. 2020). A channel that sums to 0 weighs 0.

    Example:
        >>> import torch, pellucid as pl
        >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
        >>> pl.XGradCAM()(pl.TorchModel(net), torch.rand(1, 3, 8, 8), target=0).scores.shape
        torch.Size([1, 1, 6, 6])
    """

    @property
    def card(self) -> MethodCard:
        return card_of("xgrad-cam", "XGrad-CAM", "Fu et al. 2020, arXiv:2008.02312")

    def weights(
        self, activation: Float[Tensor, "b k *cells"], gradient: Float[Tensor, "b k *cells"]
    ) -> Float[Tensor, "b k *places"]:
        cells = over_cells(gradient)
        whole = activation.sum(cells, keepdim=True)
        return (gradient * activation).sum(cells, keepdim=True) * torch.where(whole != 0, 1 / whole, 0.0)

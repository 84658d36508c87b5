"""Grad-CAM++: positive gradients, weighed so that several objects of the class count alike.

    M = ReLU(sum_k w_k A_k),   w_k = sum_ij alpha_k,ij ReLU(dS/dA_k,ij)        (Chattopadhyay et al. 2018, eq. 10)
    alpha = g^2 / (2 g^2 + g^3 sum_ab A_k,ab)                                    (eq. 19)

with g = dS/dA, S the logit: the paper explains exp(S), whose factor exp(S) is common to all cells and left out.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from pellucid.core.card import MethodCard
from pellucid.explainers._activation_map import GradientWeighted, card_of, over_cells

__all__ = ["GradCAMPlusPlus"]


@dataclass(frozen=True, kw_only=True)
class GradCAMPlusPlus(GradientWeighted):
    """Grad-CAM with weights of the positive gradients (Chattopadhyay et al. 2018). A cell without gradient weighs 0.

    Example:
        >>> import torch, pellucid as pl
        >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
        >>> a = pl.GradCAMPlusPlus()(pl.TorchModel(net), torch.rand(1, 3, 8, 8), target=0)
        >>> bool((a.scores >= 0).all())
        True
    """

    @property
    def card(self) -> MethodCard:
        return card_of("grad-cam-plus-plus", "Grad-CAM++", "Chattopadhyay et al. 2018, arXiv:1710.11063")

    def weights(
        self, activation: Float[Tensor, "b k *cells"], gradient: Float[Tensor, "b k *cells"]
    ) -> Float[Tensor, "b k *places"]:
        cells = over_cells(gradient)
        # g^2 divided out, which may be too small for its digits: alpha = 1 / (2 + g sum A).
        below = 2 + gradient * activation.sum(cells, keepdim=True)
        alpha = torch.where(below != 0, 1 / below, 0.0)
        return (alpha * gradient.clamp(min=0)).sum(cells, keepdim=True)

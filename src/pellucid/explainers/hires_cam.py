"""HiResCAM: a layer's activation times the gradient, cell by cell.

    M = sum_k dS/dA_k * A_k        (Draelos & Carin 2020, eq. 5)

One number for each cell of the layer, signed, in units of the score. Where the rest of the network is linear, the map
sums to S less its intercept: nothing is shown that the network did not use. After a global average pool it is Grad-CAM.
"""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from pellucid.core.card import MethodCard
from pellucid.explainers._activation_map import GradientWeighted, card_of

__all__ = ["HiResCAM"]


@dataclass(frozen=True, kw_only=True)
class HiResCAM(GradientWeighted):
    """The gradient by a layer times what it gives, summed over its channels (Draelos & Carin 2020).

    Example:
        >>> import torch, pellucid as pl
        >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Flatten(), torch.nn.Linear(144, 2, bias=False))
        >>> a = pl.HiResCAM()(pl.TorchModel(net), torch.rand(1, 3, 8, 8), target=0)
        >>> torch.allclose(a.scores.sum(), a.outputs[0, 0])
        True
    """

    rectified: ClassVar[bool] = False

    @property
    def card(self) -> MethodCard:
        return card_of("hires-cam", "HiResCAM", "Draelos & Carin 2020, arXiv:2011.08891", unit="score", signed=True)

    def weights(
        self, activation: Float[Tensor, "b k *cells"], gradient: Float[Tensor, "b k *cells"]
    ) -> Float[Tensor, "b k *places"]:
        return gradient

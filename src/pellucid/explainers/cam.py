"""CAM: a layer's channels weighed by the classifier that reads their means.

    M = sum_k w_k A_k,   S = mean(M) + b        (Zhou et al. 2016, eq. 2)

Only for networks that end in a global average pool and a linear layer: there w = Z dS/dA, the same at each of Z cells.
Signed, in units of the score; the mean of the map is the score less its intercept.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from pellucid.core.card import Cost, MethodCard
from pellucid.core.estimate import Estimate
from pellucid.core.explainer import Call
from pellucid.core.model import Model
from pellucid.core.target import Targets
from pellucid.errors import LayerError
from pellucid.explainers._activation_map import GradientWeighted, card_of, grid_at, over_cells

__all__ = ["CAM"]

_SAME, _MOST = 1e4, 0.05
"""How far from linear a head may be: units of rounding of the largest value, and a share of it in half precision."""


@dataclass(frozen=True, kw_only=True)
class CAM(GradientWeighted):
    """The class activation map of a network with a pooled linear head (Zhou et al. 2016).

    Raises:
        LayerError: what follows the layer is not a global average pool and a linear map.

    Example:
        >>> import torch, pellucid as pl
        >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
        >>> a = pl.CAM()(pl.TorchModel(net), torch.rand(1, 3, 8, 8), target=0)
        >>> torch.allclose(a.scores.mean(), a.outputs[0, 0])
        True
    """

    rectified: ClassVar[bool] = False

    @property
    def card(self) -> MethodCard:
        return card_of(
            "cam",
            "CAM",
            "Zhou et al. 2016, arXiv:1512.04150",
            unit="score",
            cost=Cost(forward=3, backward=1),
            signed=True,
            caveats=("networks that end in a global average pool and a linear layer only",),
        )

    def weights(
        self, activation: Float[Tensor, "b k *cells"], gradient: Float[Tensor, "b k *cells"]
    ) -> Float[Tensor, "b k *places"]:
        return gradient.sum(over_cells(gradient), keepdim=True)

    def attribute(self, model: Model, x: Float[Tensor, "b *features"], targets: Targets, call: Call) -> Estimate:
        layers = self.layers(model, x, targets)
        found = model.layer_pass(x, targets, layers, gradients=True)
        estimate = self.of_pass(model, x, layers, found)
        eps = torch.finfo(torch.bfloat16 if model.digit_bytes(x) == 2 else x.dtype).eps
        slack = min(_SAME * eps, _MOST)
        for name, activation, gradient in zip(layers, found.activations, found.gradients, strict=True):
            grid = grid_at(name, activation, model, x)
            a, g = grid.maps(activation), grid.maps(gradient)
            # Without the layer's activation the intercept is left, if the rest of the network is linear.
            with model.tail(x, name) as (rest, rows):
                rows[:, :-1] = 0
                expected = found.scores - rest.scores(rows, targets)
            parts = (self.weights(a, g) * a).mean(over_cells(a))
            alike = (g - g.mean(over_cells(g), keepdim=True)).abs().max() <= slack * g.abs().max()
            largest = torch.maximum(found.scores.abs(), parts.abs().sum(1))  # scores may cancel
            if not alike or ((parts.sum(1) - expected).abs() > slack * largest).any():
                raise LayerError(
                    f"CAM needs a network whose score is a linear map of the mean of each channel of {name!r}, but "
                    "what follows that layer is something else. GradCAM() and HiResCAM() serve any head."
                )
        return estimate

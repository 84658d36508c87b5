"""FullGrad: the score divided among the input and every bias of the network.

    S(x) = sum x * dS/dx + sum_l sum b_l * dS/dz_l        (Srinivas & Fleuret 2019, eq. 2)
    M    = psi(x * dS/dx) + sum_l sum_c psi(b_l * dS/dz_l)_c        (eq. 6)

z_l is what bias b_l is added to; psi takes the magnitude, stretches it to 0 … 1 and enlarges it to the input. Exact for
networks of ReLU and of norms with fixed statistics; what is left of the first equation is the `residual`. One number a
pixel, 0 or more, in no unit.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from pellucid.core.card import Applicability, Cost, MethodCard, Modality, Needs, Per, Scope, Stage
from pellucid.core.estimate import Estimate
from pellucid.core.explainer import Call, Explainer
from pellucid.core.grid import grid_of
from pellucid.core.model import Ask, Model
from pellucid.core.target import Targets
from pellucid.errors import ArgumentError
from pellucid.explainers._activation_map import check_pictures, resized

__all__ = ["FullGrad"]


@dataclass(frozen=True)
class FullGrad(Explainer):
    """Input and biases times their gradients, put on one map (Srinivas & Fleuret 2019).

    Biases of layers without a grid of cells, such as the last one's, have no place on the map.

    Raises:
        ArgumentError: inputs that are no pictures (or volumes), such as vectors.

    Example:
        >>> import torch, pellucid as pl
        >>> from torch import nn
        >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2))
        >>> a = pl.FullGrad()(pl.TorchModel(net), torch.rand(1, 3, 8, 8), target=0)
        >>> a.scores.shape, bool(a.residual.abs() < 1e-5)
        (torch.Size([1, 1, 8, 8]), True)
    """

    @property
    def card(self) -> MethodCard:
        return MethodCard(
            name="full-grad",
            title="FullGrad",
            scope=Scope.LOCAL,
            stage=Stage.POST_HOC,
            applicability=Applicability.MODEL_SPECIFIC,
            needs=Needs.SCORES | Needs.GRADIENTS | Needs.MODULES | Needs.WEIGHTS,
            cost=Cost(forward=1, backward=1),
            reference="Srinivas & Fleuret 2019, arXiv:1905.00780",
            unit="sum of stretched magnitudes",
            per=Per.PIXEL,
            modalities=frozenset({Modality.IMAGE, Modality.AUDIO}),
            caveats=("networks of ReLU and of norms with fixed statistics only: read the residual",),
        )

    def asks(self, model: Model, x: Float[Tensor, "b *features"]) -> Ask:
        return Ask(biases=True)

    def attribute(self, model: Model, x: Float[Tensor, "b *features"], targets: Targets, call: Call) -> Estimate:
        features = model.features(x)
        check_pictures(self.card.title, features)
        packing = model.packing
        if packing is not None and sum(len(s) > 2 for s in packing.shapes) > 1:
            raise ArgumentError(
                "FullGrad puts every bias of a network on one picture, and this network takes several. Got parts "
                f"{dict(zip(packing.names, packing.shapes, strict=True))}. Take InputXGradient() or GradCAM()."
            )
        found = model.bias_pass(x, targets)
        own = x.to(found.gradient.dtype) * found.gradient
        explained = own if packing is None else packing.parts(own)[packing.names[packing.drawn]]
        total = _psi(explained, features)
        for bias in found.biases:
            grid = grid_of(tuple(bias.shape), features)
            if grid is not None and len(grid.cells) == len(features) - 1:
                total = total + _psi(grid.maps(bias), features)
        given = sum(part.double().flatten(1).sum(1) for part in (own, *found.biases))
        scores = found.scores.double()
        return Estimate.exact(total, residual=given - scores, notes={"change": tuple(scores.tolist())})


def _psi(maps: Float[Tensor, "b c *cells"], features: tuple[int, ...]) -> Float[Tensor, "b 1 *places"]:
    """Magnitudes from 0 to 1 of each input, at its resolution, summed over the channels."""
    size = maps.abs()
    axes = tuple(range(1, size.ndim))
    above = size - size.amin(axes, keepdim=True)
    largest = above.amax(axes, keepdim=True)
    scaled = above / torch.where(largest > 0, largest, 1)
    return resized(scaled.sum(1, keepdim=True), features[1:])

"""Ablation-CAM: each channel of a layer counts as much as the score that is lost without it.

    M = ReLU(sum_k w_k A_k),   w_k = S - S_k        (Desai & Ramaswamy 2020, eq. 5)

S_k is the score with channel k of the layer set to zero. The paper divides w by S, which is common to all channels and
would turn the map's sign round where S is negative. Only what follows the layer is run for each channel.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from pellucid.core.card import Cost, MethodCard, Needs
from pellucid.core.estimate import Estimate
from pellucid.core.explainer import Call
from pellucid.core.grid import Grid
from pellucid.core.model import Model
from pellucid.core.target import Targets
from pellucid.explainers._activation_map import ActivationMap, card_of, fused, grid_at

__all__ = ["AblationCAM"]


@dataclass(frozen=True, kw_only=True)
class AblationCAM(ActivationMap):
    """A layer's channels weighed by what the score loses without them (Desai & Ramaswamy 2020). No gradients.

    Raises:
        LayerError: the network has no such layer, or none with a grid of cells.

    Example:
        >>> import torch, pellucid as pl
        >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
        >>> pl.AblationCAM()(pl.TorchModel(net), torch.rand(1, 3, 8, 8), target=0).scores.shape
        torch.Size([1, 1, 6, 6])
    """

    @property
    def card(self) -> MethodCard:
        return card_of(
            "ablation-cam",
            "Ablation-CAM",
            "Desai & Ramaswamy 2020, doi:10.1109/WACV45572.2020.9093360",
            unit="score times activation",
            cost=Cost(forward=2, channels=1),
            needs=Needs.NOTHING,
        )

    def attribute(self, model: Model, x: Float[Tensor, "b *features"], targets: Targets, call: Call) -> Estimate:
        layers = self.layers(model, x, targets)
        maps = []
        for name in layers:
            with model.tail(x, name) as (rest, rows):
                assert rest.packing is not None  # noqa: S101  # a tail's
                activation = rest.packing.parts(rows)["activation"]
                grid = grid_at(name, activation, model, x)
                lost = [_lost(rest, rows[i : i + 1], targets[i : i + 1], grid) for i in range(len(x))]
            a = grid.maps(activation)
            weights = torch.stack(lost).view(*a.shape[:2], *(1,) * (a.ndim - 2)).to(a.dtype)
            maps.append((weights * a).sum(1, keepdim=True).clamp(min=0))
        return Estimate.exact(fused(maps), notes=self.notes(layers, len(x)))


def _lost(rest: Model, row: Float[Tensor, "1 features"], targets: Targets, grid: Grid) -> Float[Tensor, " k"]:
    """What the score loses without each channel."""
    assert rest.packing is not None  # noqa: S101  # a tail's
    whole = rest.scores(row, targets)
    activation = rest.packing.parts(row)["activation"]
    channels = grid.maps(activation).shape[1]
    scores = []
    for some in torch.arange(channels, device=row.device).split(rest.rows(row, maps=1)):
        rows = row.repeat(len(some), 1)
        # A view into the rows, so that the channel is set to zero in them.
        maps = grid.maps(rest.packing.parts(rows)["activation"])
        maps[torch.arange(len(some)), some] = 0
        scores.append(rest.scores(rows, targets.repeat(len(some))))
    return whole - torch.cat(scores)

"""EigenCAM: the pattern that explains most of what a layer gives, whatever the class.

    M = A v_1,   A = U S V^T        (Muhammad & Yeasin 2020, eq. 3), A: cells x channels, not centred

One number for each cell, in units of the activation. The sign of a singular vector is arbitrary; the map's is chosen so
that it sums to 0 or more, which for an activation without negative values makes it nowhere negative.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from pellucid.core.card import Cost, MethodCard, Needs
from pellucid.core.estimate import Estimate
from pellucid.core.explainer import Call
from pellucid.core.model import Ask, Model
from pellucid.core.target import Targets
from pellucid.explainers._activation_map import ActivationMap, card_of, fused, grid_at

__all__ = ["EigenCAM"]


@dataclass(frozen=True, kw_only=True)
class EigenCAM(ActivationMap):
    """The first principal component of a layer's activation (Muhammad & Yeasin 2020). The target does not enter.

    Example:
        >>> import torch, pellucid as pl
        >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
        >>> pl.EigenCAM()(pl.TorchModel(net), torch.rand(1, 3, 8, 8)).scores.shape
        torch.Size([1, 1, 6, 6])
    """

    @property
    def card(self) -> MethodCard:
        return card_of(
            "eigen-cam",
            "EigenCAM",
            "Muhammad & Yeasin 2020, arXiv:2008.00299",
            unit="activation",
            cost=Cost(forward=1),
            needs=Needs.NOTHING,
            signed=True,
            caveats=("the same map for every class",),
        )

    def asks(self, model: Model, x: Float[Tensor, "b *features"]) -> Ask:
        return Ask(layers=self.layers(model, x), gradients=False)

    def attribute(self, model: Model, x: Float[Tensor, "b *features"], targets: Targets, call: Call) -> Estimate:
        layers = self.layers(model, x, targets)
        found = model.layer_pass(x, targets, layers, gradients=False)
        maps = []
        for name, activation in zip(layers, found.activations, strict=True):
            a = grid_at(name, activation, model, x).maps(activation)
            each = [_first_component(one.flatten(1).T.double()) for one in a]
            maps.append(torch.stack(each).unflatten(1, a.shape[2:])[:, None].to(a.dtype))
        return Estimate.exact(fused(maps), notes=self.notes(layers, len(x)))


def _first_component(a: Float[Tensor, "cells channels"]) -> Float[Tensor, " cells"]:
    left, values, _ = torch.linalg.svd(a, full_matrices=False)
    component: Tensor = left[:, 0] * values[0]
    return component if component.sum() >= 0 else -component

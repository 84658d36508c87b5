"""Class activation maps: a layer's channels, weighed and summed to one number for each of its cells.

    M = [ sum_k w_k A_k ]_+        A: (B, K, h, w), the layer's activation; w: (B, K, 1, 1) or (B, K, h, w)

The members of the family differ in two slots: the weights w, and whether what speaks against the target is cut off.
Raw maps keep the layer's resolution; drawing enlarges them.
"""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from pellucid.core.card import Applicability, Cost, MethodCard, Modality, Needs, Per, Scope, Stage
from pellucid.core.estimate import Estimate
from pellucid.core.explainer import Call, Explainer
from pellucid.core.grid import Grid, grid_of
from pellucid.core.model import Ask, LayerPass, Model
from pellucid.core.target import Targets
from pellucid.errors import ArgumentError, LayerError

__all__ = [
    "ActivationMap",
    "GradientWeighted",
    "card_of",
    "check_pictures",
    "fused",
    "grid_at",
    "over_cells",
    "resized",
]


@dataclass(frozen=True, kw_only=True)
class ActivationMap(Explainer):
    """Abstract: a map of a layer's cells. `layer` is a module's name, or several names whose maps are fused; by default
    the last layer with a grid of cells, which the notes of the recipe name.
    """

    layer: str | tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        names = self.layer if isinstance(self.layer, tuple) else (self.layer,)
        if not names or not all(isinstance(name, str) for name in names if self.layer is not None):
            raise ArgumentError(f"`layer` is the name of a module, or a tuple of names. Got {self.layer!r}.")

    def layers(self, model: Model, x: Float[Tensor, "b *features"], targets: Targets | None = None) -> tuple[str, ...]:
        """The names of the layers; the default one lies before layers that targets read."""
        if self.layer is None:
            return (model.spatial_layer(x, () if targets is None else targets.layers),)
        return self.layer if isinstance(self.layer, tuple) else (self.layer,)

    def notes(self, layers: Sequence[str], rows: int) -> dict[str, tuple[float | str, ...]]:
        """What the recipe says of each input."""
        return {"layer": (", ".join(layers),) * rows}


@dataclass(frozen=True, kw_only=True)
class GradientWeighted(ActivationMap):
    """Abstract: channels weighed by gradients. A member says how."""

    rectified: ClassVar[bool] = True
    """Whether only what speaks for the target is kept."""

    @abstractmethod
    def weights(
        self, activation: Float[Tensor, "b k *cells"], gradient: Float[Tensor, "b k *cells"]
    ) -> Float[Tensor, "b k *places"]:
        """How much each channel counts, everywhere alike or cell by cell."""

    def asks(self, model: Model, x: Float[Tensor, "b *features"]) -> Ask:
        return Ask(layers=self.layers(model, x))

    def attribute(self, model: Model, x: Float[Tensor, "b *features"], targets: Targets, call: Call) -> Estimate:
        layers = self.layers(model, x, targets)
        return self.of_pass(model, x, layers, model.layer_pass(x, targets, layers, gradients=True))

    def of_pass(
        self, model: Model, x: Float[Tensor, "b *features"], layers: Sequence[str], found: LayerPass
    ) -> Estimate:
        """The map of a pass there and back."""
        maps = []
        for name, activation, gradient in zip(layers, found.activations, found.gradients, strict=True):
            grid = grid_at(name, activation, model, x)
            a, g = grid.maps(activation), grid.maps(gradient)
            summed = (self.weights(a, g) * a).sum(1, keepdim=True)
            maps.append(summed.clamp(min=0) if self.rectified else summed)
        return Estimate.exact(fused(maps), notes=self.notes(layers, len(x)))


def card_of(
    name: str,
    title: str,
    reference: str,
    *,
    unit: str = "score, up to a factor",
    cost: Cost = Cost(forward=1, backward=1),  # noqa: B008  # a frozen value
    needs: Needs = Needs.GRADIENTS,
    signed: bool = False,
    caveats: tuple[str, ...] = (),
) -> MethodCard:
    """The card of a member of the family; each needs scores, activations and modules besides."""
    return MethodCard(
        name=name,
        title=title,
        scope=Scope.LOCAL,
        stage=Stage.POST_HOC,
        applicability=Applicability.MODEL_SPECIFIC,
        needs=Needs.SCORES | Needs.ACTIVATIONS | Needs.MODULES | needs,
        cost=cost,
        reference=reference,
        unit=unit,
        per=Per.CELL,
        channels="sum" if signed else "max_abs",
        modalities=frozenset({Modality.IMAGE, Modality.AUDIO}),
        caveats=("networks with a layer of cells only", *caveats),
    )


def grid_at(name: str, activation: Tensor, model: Model, x: Tensor) -> Grid:
    """The layer's grid.

    Raises:
        LayerError: it has none.
    """
    features = model.features(x)
    grid = grid_of(tuple(activation.shape), features)
    if grid is None:
        raise LayerError(
            f"Expected the layer {name!r} to give a grid of cells, such as (B, K, h, w), for inputs {features}, but it "
            f"gave {tuple(activation.shape)}. Name an earlier one, or leave `layer` out."
        )
    return grid


def check_pictures(title: str, features: tuple[int, ...]) -> None:
    """Raises ArgumentError for inputs of which it is not known what axes are places: (T, C) or (C, T)."""
    if len(features) < 3 and features[:-1] != (1,):
        raise ArgumentError(
            f"{title} takes maps to the places of the input, for pictures (B, C, H, W), volumes, or signals (B, 1, T). "
            f"Got inputs {features}."
        )


def over_cells(x: Float[Tensor, "b k *cells"]) -> tuple[int, ...]:
    """The axes of the cells."""
    return tuple(range(2, x.ndim))


def resized(maps: Float[Tensor, "b k *cells"], cells: Sequence[int]) -> Float[Tensor, "b k *others"]:
    """Maps with other cells in the same place: linear interpolation between the centres of the cells."""
    if tuple(maps.shape[2:]) == tuple(cells):
        return maps
    mode = {1: "linear", 2: "bilinear", 3: "trilinear"}[len(cells)]
    return torch.nn.functional.interpolate(maps, size=tuple(cells), mode=mode, align_corners=False)


def fused(maps: Sequence[Float[Tensor, "b 1 ..."]]) -> Float[Tensor, "b 1 *cells"]:
    """One map; of several layers the mean of their maps on the finest grid, each divided by its largest magnitude."""
    if len(maps) == 1:
        return maps[0]
    finest = max((tuple(one.shape[2:]) for one in maps), key=lambda cells: torch.Size(cells).numel())
    total = torch.zeros(())
    for one in maps:
        largest = one.abs().amax(tuple(range(1, one.ndim)), keepdim=True)
        total = total.to(one) + resized(one / torch.where(largest > 0, largest, 1), finest)
    return total / len(maps)

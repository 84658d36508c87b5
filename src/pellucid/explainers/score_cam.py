"""Score-CAM: each channel of a layer masks the input, and counts as much as the score that is left.

    M = ReLU(sum_k a_k A_k),   a = softmax_k(S(x' + (x - x') H_k) - S(x'))        (Wang et al. 2020, algorithm 1)

H_k is A_k enlarged to the input and stretched from its least value, 0, to its greatest, 1; x' is the baseline, zero in
the model's units as in the paper unless another is given. S(x') is common to all channels and drops out. Channels that
are the same everywhere mask everything, and share one pass.
"""

from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from pellucid.core.baseline import Baseline, Zeros, check_baseline, standing_in
from pellucid.core.card import Cost, MethodCard, Needs
from pellucid.core.estimate import Estimate
from pellucid.core.explainer import Call
from pellucid.core.model import Ask, Model
from pellucid.core.target import Targets
from pellucid.explainers._activation_map import ActivationMap, card_of, check_pictures, fused, grid_at, resized

__all__ = ["ScoreCAM"]

_LEVEL = 100
"""Units of rounding of a channel's range."""


@dataclass(frozen=True, kw_only=True)
class ScoreCAM(ActivationMap):
    """A layer's channels weighed by the score of the input that they mask (Wang et al. 2020). No gradients.

    Raises:
        LayerError: the network has no such layer, or none with a grid of cells.

    Example:
        >>> import torch, pellucid as pl
        >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
        >>> pl.ScoreCAM()(pl.TorchModel(net), torch.rand(1, 3, 8, 8), target=0).scores.shape
        torch.Size([1, 1, 6, 6])
    """

    baseline: Baseline = field(default_factory=Zeros)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_baseline(self.baseline)

    @property
    def card(self) -> MethodCard:
        cost = Cost(forward=1, channels=1)
        caveat = "the weights saturate: where one score is much larger, one channel is the map"
        return card_of(
            "score-cam",
            "Score-CAM",
            "Wang et al. 2020, arXiv:1910.01279",
            unit="activation",
            cost=cost,
            needs=Needs.NOTHING,
            caveats=(caveat,),
        )

    def asks(self, model: Model, x: Float[Tensor, "b *features"]) -> Ask:
        return Ask(layers=self.layers(model, x), gradients=False)

    def attribute(self, model: Model, x: Float[Tensor, "b *features"], targets: Targets, call: Call) -> Estimate:
        layers = self.layers(model, x, targets)
        found = model.layer_pass(x, targets, layers, gradients=False)
        absent = standing_in(self.baseline, x, model.preprocess, model.packing)
        maps = []
        for name, activation in zip(layers, found.activations, strict=True):
            a = grid_at(name, activation, model, x).maps(activation)
            check_pictures(self.card.title, model.features(x))
            each = [self._map(model, x[i : i + 1], absent[i : i + 1], targets[i : i + 1], a[i]) for i in range(len(x))]
            maps.append(torch.stack(each)[:, None])
        return Estimate.exact(fused(maps), notes=self.notes(layers, len(x)))

    def _map(
        self, model: Model, x: Tensor, absent: Tensor, targets: Targets, a: Float[Tensor, "k *cells"]
    ) -> Float[Tensor, "*cells"]:
        cells = tuple(range(1, a.ndim))
        low, high = a.amin(cells), a.amax(cells)
        live = torch.nonzero(high > low).flatten()
        scores = torch.empty(len(a), dtype=torch.float64, device=a.device)
        if len(live) < len(a):
            scores[:] = model.scores(absent, targets).double()
        for channels in live.split(max(model.rows(x, maps=1), 1)):
            masks = resized(a[None, channels], model.features(x)[1:])[0]
            flat = masks.flatten(1)
            least, span = flat.amin(1), flat.amax(1) - flat.amin(1)
            # A pattern finer than the input may be level at its places, but for rounding.
            scale = torch.where(span > _LEVEL * torch.finfo(a.dtype).eps * (high - low)[channels], 1 / span, 0.0)
            shape = (-1, *(1,) * (masks.ndim - 1))
            masks = (masks - least.view(shape)) * scale.view(shape)
            rows = masked(model, x, absent, masks.to(x.dtype))
            scores[channels] = model.scores(rows, targets.repeat(len(channels))).double()
        weights = torch.softmax(scores, 0).to(a.dtype)
        return (weights.view(-1, *(1,) * (a.ndim - 1)) * a).sum(0).clamp(min=0)


def masked(model: Model, x: Tensor, absent: Tensor, masks: Float[Tensor, "n *places"]) -> Float[Tensor, "n *features"]:
    """One input under each mask; of several parts, that which is drawn is masked and the others stay."""
    packing = model.packing
    if packing is None:
        return absent + (x - absent) * masks[:, None]
    drawn = packing.drawn
    parts = [part.expand(len(masks), *part.shape[1:]) for part in packing.parts(x).values()]
    away = list(packing.parts(absent).values())[drawn]
    parts[drawn] = away + (parts[drawn] - away) * masks[:, None]
    return packing.packed(parts)

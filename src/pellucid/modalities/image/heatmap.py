"""From a raw map (C, H, W) to one number a pixel and a scale of colours: the part of drawing that changes numbers.

The scale is never stretched from a map's least to its greatest value: that turns pure noise into a full-range picture.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float
from torch import Tensor

from pellucid.core.attribution import Attribution
from pellucid.core.checks import check_choice
from pellucid.core.recipe import decode
from pellucid.errors import ArgumentError

__all__ = ["CHANNELS", "Channels", "Heatmap", "reduce_channels", "spread", "to_heatmap"]

Channels = Literal["max_abs", "sum_abs", "abs_sum", "sum", "mean"]

CHANNELS: dict[str, str] = {
    "max_abs": "largest magnitude of the channels",
    "sum_abs": "sum of the channels' magnitudes",
    "abs_sum": "magnitude of the channels' sum",
    "sum": "sum of the channels",
    "mean": "mean of the channels",
}
"""How channels become one map: Simonyan's, PAIR's, Captum's picture; signed sum and mean."""


@dataclass(frozen=True, eq=False)
class Heatmap:
    """One number a pixel, (H, W), drawn from 0 (or -limit, if signed) to `limit`; `clipped` is the share beyond it.

    `blank` says why the map shows nothing or not all: it is zero, or holds NaN. `certain` marks the pixels whose signal
    was found to exceed the sampling error; None where that was not tested.
    """

    values: np.ndarray
    signed: bool
    limit: float
    clipped: float
    channels: str
    unit: str = ""
    blank: str = ""
    certain: np.ndarray | None = None


def reduce_channels(scores: Float[Tensor, "c h w"], channels: str) -> Float[np.ndarray, "h w"]:
    """One number a pixel."""
    values = scores.detach().cpu().double().numpy()
    match channels:
        case "max_abs":
            reduced = np.abs(values).max(0)
        case "sum_abs":
            reduced = np.abs(values).sum(0)
        case "abs_sum":
            reduced = np.abs(values.sum(0))
        case "sum":
            reduced = values.sum(0)
        case _:
            reduced = values.mean(0)
    return np.asarray(reduced)


def to_heatmap(
    a: Attribution,
    *,
    channels: Channels | None = None,
    percentile: float = 99.0,
    limit: float | None = None,
) -> Heatmap:
    """The heatmap of one image's attribution; `limit` shares a scale, otherwise it is the percentile of |values|.

    A map of a layer's cells is enlarged to the input, by linear interpolation between the centres of the cells.

    Raises:
        ArgumentError: not one image's map, or a setting out of range.
    """
    card = decode(a.recipe.explainer).card
    channels = card.channels if channels is None else channels
    check_choice("channels", channels, tuple(CHANNELS))
    if not 0 < percentile <= 100:
        raise ArgumentError(f"`percentile` is over 0 up to 100. Got {percentile!r}.")
    if limit is not None and not 0 < limit < float("inf"):
        raise ArgumentError(f"`limit` is the value at the end of the colours, finite and over 0. Got {limit!r}.")
    if len(a) != 1 or a.scores.ndim != 4:
        raise ArgumentError(f"A heatmap shows one image's map (1, C, H, W). Got {tuple(a.scores.shape)}.")
    values = _enlarged(reduce_channels(a.scores[0], channels), a.features)
    unit = card.unit
    if card.stands and np.isfinite(values).any():
        level = float(values[np.isfinite(values)].mean())
        values, unit = values - level, f"{unit} above the map's mean of {level:.3g}"
    finite = np.abs(values[np.isfinite(values)])
    found = float(np.percentile(finite, percentile)) if finite.size else 0.0
    if found == 0.0 and finite.size:
        found = float(finite.max())  # a map with less than 1 % of its pixels set: the percentile would hide them all
    scale = found if limit is None else limit
    return Heatmap(
        values=values,
        signed=channels in ("sum", "mean"),
        limit=scale,
        clipped=float((finite > scale).mean()) if finite.size else 0.0,
        channels=channels,
        unit=unit,
        blank=_why_blank(a, finite, values),
    )


def _enlarged(values: Float[np.ndarray, "h w"], features: tuple[int, ...]) -> Float[np.ndarray, "h2 w2"]:
    if len(features) != 3 or values.shape == features[1:]:
        return values
    down, along = (spread(new, 0, new, old) for new, old in zip(features[1:], values.shape, strict=True))
    return np.asarray(down @ values @ along.T)


def spread(pixels: int, low: float, high: float, cells: int) -> Float[np.ndarray, "pixels cells"]:
    """How much each cell of a map that lies from `low` to `high` counts at each of a row of pixels.

    Linear interpolation between the cells' centres; where several cells share a pixel, their average.
    """
    at = np.clip((np.arange(pixels) + 0.5 - low) / (high - low) * cells - 0.5, 0, cells - 1)
    reach = max(cells / (high - low), 1)
    weights = np.maximum(1 - np.abs(at[:, None] - np.arange(cells)) / reach, 0)
    return np.asarray(weights / weights.sum(1, keepdims=True))


def _why_blank(a: Attribution, finite: np.ndarray, values: np.ndarray) -> str:
    reasons = {f.code: str(f) for f in a.findings}
    if finite.size < values.size:
        return reasons.get("not-finite-map", "The map holds NaN or infinite values.")
    if not finite.any():
        return reasons.get("no-gradient") or reasons.get("zero-map", "Every value of the map is exactly zero.")
    return ""

"""The pictures that users ask for: heatmap, overlay, the page with both and the uncertainty, the comparison."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pellucid.core.attribution import Attribution
from pellucid.core.card import Per
from pellucid.core.input import View
from pellucid.core.recipe import decode
from pellucid.errors import ArgumentError
from pellucid.explainers._noise import NoiseLevel
from pellucid.metrics.similarity import structural_similarity
from pellucid.metrics.stability import Stability
from pellucid.modalities.image.heatmap import Channels, Heatmap, to_heatmap
from pellucid.modalities.image.uncertainty import can_tell, certain_places

if TYPE_CHECKING:
    from pellucid.modalities.image.draw import Drawing, Panel

__all__ = ["comparison_page", "completeness", "gallery", "heatmap", "on_one_scale", "overlay", "page"]

_ACROSS = 4  # panels of a gallery's row
_LABEL = 80  # letters of a label in a title: two lines with its probability


def heatmap(
    a: Attribution, *, channels: Channels | None = None, percentile: float = 99.0, limit: float | None = None
) -> "Drawing":
    """Each input's map in colour with its class, probability and colour bar; inputs stand side by side.

    `channels` says how channels become one number a pixel ("sum" and "mean" keep the sign; by default as the method's
    card says), `percentile` of the pixels' magnitudes is the end of the scale unless `limit` gives it. The picture
    shows itself in a notebook.

    Raises:
        ArgumentError: not maps of images, or a setting that does not exist.

    Example:
        >>> import torch, pellucid as pl
        >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 2, 3), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
        >>> a = pl.SimpleGradient()(pl.TorchModel(net), torch.rand(1, 3, 16, 16))
        >>> pl.heatmap(a).pixels.ndim
        3
    """
    from pellucid.modalities.image.draw import compose

    each = [to_heatmap(one, channels=channels, percentile=percentile, limit=limit) for one in a]
    return compose(
        [[map_panel(one, heat) for one, heat in zip(a, each, strict=True)]], metadata([a]), method_caption([a])
    )


def overlay(a: Attribution, *, channels: Channels | None = None, percentile: float = 99.0) -> "Drawing":
    """One input's map over its photo, at the photo's own size; what lies outside the model's crop is hatched.

    Raises:
        ArgumentError: several inputs, or one that was not read from a picture.
    """
    from pellucid.modalities.image.draw import Drawing, inscribed, overlay_pixels

    view = _view(a)
    heat = to_heatmap(a, channels=channels, percentile=percentile)
    pixels = overlay_pixels(view, heat)
    return Drawing(inscribed(pixels, heat.blank) if heat.blank else pixels, metadata([a]))


def page(each: Sequence[Attribution], *, channels: Channels | None = None, percentile: float = 99.0) -> "Drawing":
    """One photo's maps: overlay, map, and the map where its signal exceeds the sampling error. Several targets of the
    photo stand side by side, on one scale.

    Raises:
        ArgumentError: no maps, or not maps of images.
    """
    from pellucid.modalities.image.draw import Panel, compose, overlay_pixels, reduced

    if not each:
        raise ArgumentError("A page shows at least one attribution. Got none.")
    heats = on_one_scale(each, channels=channels, percentile=percentile)
    columns, notes = [], [method_caption(each)]
    for a, heat in zip(each, heats, strict=True):
        panels = [map_panel(a, heat)]
        if a.views:
            outside = "hatched: outside the model's crop" if _cropped(a) else ""
            over = overlay_pixels(reduced(_view(a)), heat)
            panels = [Panel(over, title_of(a), outside), replace(panels[0], title="map")]
        if can_tell(a):
            found = certain_places(a)
            title = f"beyond sampling error: {found.share:.0%} of the area"
            panels.append(replace(map_panel(a, replace(heat, certain=found.pixels)), title=title))
            notes[1:] = [f"Uncertainty: {found.caption}"]
        columns.append(panels)
    rows = columns if len(columns) == 1 else [list(row) for row in zip(*columns, strict=True)]
    return compose(rows, metadata(each), ". ".join(notes) + ".")


def comparison_page(results: Sequence[Stability], *, channels: Channels | None = None, noise: str = "") -> "Drawing":
    """Each method's map of an input and of its noised copies, a row a method on one scale, with their similarity."""
    from pellucid.modalities.image.draw import compose

    if not results:
        raise ArgumentError("A comparison shows at least one method. Got none.")
    rows = []
    for result in results:
        maps = [result.original, *result.copies]
        heats = on_one_scale(maps, channels=channels)
        row = [replace(map_panel(maps[0], heats[0]), title=f"{method_title(result.explainer)}\n{title_of(maps[0])}")]
        for a, heat, rank in zip(maps[1:], heats[1:], result.rank_correlations, strict=True):
            alike = structural_similarity(heats[0].values, heat.values)
            title = f"{title_of(a)}\nrank correlation {rank:.2f}, SSIM {alike:.2f}"
            row.append(replace(map_panel(a, heat), title=title))
        rows.append(row)
    caption = (
        "First column: the input; then noised copies with the same prediction. Rank correlation of the raw signed "
        f"maps, SSIM of the pictures, both with the first column. {noise}"
    )
    return compose(rows, metadata([result.original for result in results]), caption)


def gallery(each: Sequence[Attribution], *, channels: Channels | None = None, percentile: float = 99.0) -> "Drawing":
    """Several methods' maps of one photo beside each other: the photo as the model sees it, then each over the photo.

    Methods have units of their own, so that each map has its own scale; the rule of the scale is the same.

    Raises:
        ArgumentError: no maps, or not of one photo that was read from a picture.

    Example:
        >>> import numpy as np, torch, pellucid as pl
        >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 2, 3), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
        >>> model = pl.TorchModel(net, preprocess=pl.ImagePreprocess(size=16))
        >>> x = model.read(np.zeros((20, 30, 3), dtype=np.uint8) + np.arange(30, dtype=np.uint8)[:, None])
        >>> pl.gallery([explain(model, x) for explain in (pl.SimpleGradient(), pl.GradCAM())]).pixels.ndim
        3
    """
    from pellucid.modalities.image.draw import Panel, compose, cropped, overlay_pixels

    if not each:
        raise ArgumentError("A gallery shows at least one attribution. Got none.")
    seen = cropped(_view(each[0]))
    panels = [Panel(seen.preview.numpy(), f"the photo as the model sees it\n{title_of(each[0])}")]
    for a in each:
        heat = to_heatmap(a, channels=channels, percentile=percentile)
        title = f"{method_title(decode(a.recipe.explainer))}{taken(a)}"
        shown = replace(heat, clipped=0.0)  # the caption says it, for all
        said = completeness(a) or proved(a)
        panels.append(Panel(overlay_pixels(cropped(_view(a)), heat), title, said, bar=shown))
    rows = [panels[i : i + _ACROSS] for i in range(0, len(panels), _ACROSS)]
    caption = (
        f"{each[0].decision.source}, explained: {title_of(each[0])}, by {each[0].recipe.model}. Each scale ends at the "
        f"{percentile:g}th percentile of its map's magnitudes. Maps of a layer's cells are enlarged between the cells' "
        "centres."
    )
    return compose(rows, metadata(each), caption)


def taken(a: Attribution) -> str:
    """How many samples a map rests on, if it is sampled, and its error, in words that follow the method's name."""
    if not max(a.estimate.samples):
        return ""
    words = f", n = {between(a.estimate.samples, str)}"
    if a.estimate.error is None:
        return words
    error = float(a.estimate.error.max())
    return words + (f", error {error:.2g}" if error < float("inf") else ",\nno signal yet")


def completeness(a: Attribution) -> str:
    """How far a map's sum is from the change of the score that it divides; empty where it divides none."""
    change = a.recipe.notes.get("change")
    if a.residual is None or change is None or decode(a.recipe.explainer).card.per is Per.PIXEL:
        return ""  # FullGrad's terms are divided fully, its map is made of their magnitudes
    return f"sums to {float(a.residual[0]) + float(change[0]):.3g} of {float(change[0]):.3g}"


def proved(a: Attribution) -> str:
    """What a search for a set of segments found, and what it proves; empty for other methods."""
    notes = a.recipe.notes
    if "proof" not in notes:
        return ""
    return f"{notes['size'][0]:g} of {notes['segments'][0]:g} segments, to {notes['flips to'][0]} ({notes['proof'][0]})"


def on_one_scale(
    each: Sequence[Attribution], *, channels: Channels | None = None, percentile: float = 99.0
) -> list[Heatmap]:
    """The heatmaps of several attributions, all up to the largest of their own limits, so that colours compare."""
    own = [to_heatmap(a, channels=channels, percentile=percentile) for a in each]
    limit = max(heat.limit for heat in own) or None  # 0 where all are blank
    return [to_heatmap(a, channels=channels, percentile=percentile, limit=limit) for a in each]


def map_panel(a: Attribution, heat: Heatmap) -> "Panel":
    """A map with its title, colour bar and, if it is blank, the reason."""
    from pellucid.modalities.image.draw import Panel, colours

    return Panel(colours(heat), title_of(a), bar=heat)


def title_of(a: Attribution) -> str:
    """The decision in a few words: class and probability."""
    decision = a.decision
    label = decision.label if len(decision.label) <= _LABEL else f"{decision.label[:_LABEL]}…"
    if decision.probability is None:
        return label if decision.score is None else f"{label}: {decision.score:.3g}"
    return f"{label} {decision.probability:.1%}"


def method_title(method: Any) -> str:
    """The method's name, with its estimator if that is not the plain mean."""
    estimator = getattr(method, "estimator", None)
    title = str(method.card.title)
    return f"{title} ({estimator.words})" if estimator is not None and estimator.words else title


def method_caption(each: Sequence[Attribution]) -> str:
    """The method with its settings, what it took and came to for all inputs, and the model."""
    method = decode(each[0].recipe.explainer)
    words = [method_title(method)]
    samples = [used for a in each for used in a.estimate.samples]
    if max(samples):
        while not hasattr(method, "seed"):  # it is the base that samples
            method = method.base
        noise = getattr(method, "noise", None)  # sampled methods without noise have none
        taken = between(samples, str)
        what = "samples" if not hasattr(method, "budget") else "model calls"
        words.append(f"{taken} {what}{f' at {_level(noise)}' if noise else ''}, seed {method.seed}")
        errors = [float(error) for a in each if a.estimate.error is not None for error in a.estimate.error]
        if known := [error for error in errors if error < float("inf")]:
            words.append(f"relative error {between(known, '{:.2g}'.format)}")
        if len(known) < len(errors):
            some = f" in {len(errors) - len(known)} of {len(errors)}" if known else ""
            words.append(f"no signal yet{some}")
    words += dict.fromkeys(why for a in each for why in a.estimate.stopped if why.startswith("interrupted"))
    if len(each) == 1 and len(each[0]) == 1 and (whole := completeness(each[0]) or proved(each[0])):
        words.append(whole)
    return f"{', '.join(words)}, explaining {each[0].recipe.model}"


def between(values: Sequence[float], written: Callable[[float], str]) -> str:
    """The only value, or the least and the largest."""
    ends = dict.fromkeys((written(min(values)), written(max(values))))
    return " to ".join(ends)


def metadata(each: Sequence[Attribution]) -> str:
    """The recipes behind a picture, as JSON."""
    return json.dumps([vars(a.recipe) for a in each], sort_keys=True, separators=(",", ":"))


def _level(noise: NoiseLevel) -> str:
    return f"noise level {noise.fraction:g}" if noise.sigma is None else f"sigma {noise.sigma:g}"


def _view(a: Attribution) -> View:
    if len(a) != 1 or not a.views or a.views[0].kind != "image":
        raise ArgumentError(
            f"An overlay needs one input that was read from a picture. Got {len(a)} input(s)"
            f"{'' if a.views else ' given as a bare tensor: read the picture with model.read(...)'}."
        )
    return a.views[0]


def _cropped(a: Attribution) -> bool:
    high, wide = a.views[0].geometry["size"]
    return bool(a.views[0].geometry["box"] != [0, 0, wide, high])

"""Pictures of image maps: heatmap, overlay, uncertainty view, and pages of them with captions and a colour bar.

matplotlib is loaded when this file is, which happens when a picture is drawn.
"""

import io
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, Normalize
from matplotlib.figure import Figure
from PIL import Image, PngImagePlugin

from pellucid.core.input import View
from pellucid.errors import OutputError
from pellucid.modalities.image.heatmap import CHANNELS, Heatmap

__all__ = ["Drawing", "Panel", "colours", "compose", "hatch", "overlay_pixels"]

_INCH = 3.2
_DPI = 110
_GREY = 0.72
_HATCH = 12  # pixels from one hatch line to the next at 448 pixels


@dataclass(frozen=True, eq=False)
class Drawing:
    """A finished picture: uint8 pixels (H, W, 3) and the text that goes into the file's metadata.

    Displays itself in a notebook.
    """

    pixels: UInt8[np.ndarray, "h w 3"]
    metadata: str

    def save(self, path: str | Path) -> Path:
        """Write a PNG with the recipe in its text chunk `pellucid`.

        Raises:
            OutputError: not a PNG name, or the file cannot be written.
        """
        path = Path(path)
        if path.suffix.lower() != ".png":
            raise OutputError(f"{path}: pictures are saved as .png, which keeps the recipe with the picture.")
        try:
            path.write_bytes(self.png())
        except OSError as error:
            raise OutputError(f"{path}: cannot be written ({error.strerror or error}).") from error
        return path

    def png(self) -> bytes:
        """The PNG file's bytes."""
        info = PngImagePlugin.PngInfo()
        info.add_itxt("pellucid", self.metadata, zip=True)
        buffer = io.BytesIO()
        Image.fromarray(self.pixels).save(buffer, "PNG", pnginfo=info)
        return buffer.getvalue()

    def _repr_png_(self) -> bytes:
        return self.png()


@dataclass(frozen=True, eq=False)
class Panel:
    """One picture of a page: pixels, what stands above and below it, and the scale of its colour bar, if it has one."""

    pixels: UInt8[np.ndarray, "h w 3"]
    title: str
    note: str = ""
    bar: Heatmap | None = None


def colours(heat: Heatmap) -> UInt8[np.ndarray, "h w 3"]:
    """The heatmap in colour: black at 0 and bright at the limit; signed maps white at 0, red for, blue against."""
    scaled = np.clip(heat.values / heat.limit if heat.limit > 0 else np.zeros_like(heat.values), -1, 1)
    rgb = _colormap(heat.signed)((scaled + 1) / 2 if heat.signed else scaled)[..., :3]
    rgb[~np.isfinite(heat.values)] = (1.0, 0.0, 1.0)  # never a colour of the scale
    if heat.certain is not None:
        rgb[~heat.certain] = _GREY * 0.5 + rgb[~heat.certain].mean(-1, keepdims=True) * 0.2
    return np.asarray(np.round(rgb * 255), dtype=np.uint8)


def overlay_pixels(view: View, heat: Heatmap) -> UInt8[np.ndarray, "h w 3"]:
    """The map over its photo at the photo's own size, the part that the model never saw hatched."""
    photo = view.preview.numpy().astype(np.float64) / 255
    grey = photo.mean(-1, keepdims=True).repeat(3, -1)
    left, top, right, bottom = view.geometry["box"]
    strength, rgb = _on_photo(heat, photo.shape[:2], (left, top, right, bottom))
    blended = (0.2 + 0.75 * grey) * (1 - strength[..., None]) + rgb * strength[..., None]
    inside = np.zeros(photo.shape[:2], dtype=bool)
    inside[round(top) : round(bottom), round(left) : round(right)] = True
    blended[~inside] = hatch(grey * 0.5 + 0.2)[~inside]
    return np.asarray(np.round(np.clip(blended, 0, 1) * 255), dtype=np.uint8)


def hatch(pixels: Float[np.ndarray, "h w 3"]) -> Float[np.ndarray, "h w 3"]:
    """Diagonal lines: here the model saw nothing."""
    high, wide = pixels.shape[:2]
    period = max(_HATCH * max(high, wide) // 448, 4)
    line = (np.add.outer(np.arange(high), np.arange(wide)) % period) < max(period // 6, 1)
    hatched = pixels.copy()
    hatched[line] = 0.75
    return hatched


def compose(rows: Sequence[Sequence[Panel]], metadata: str, caption: str = "") -> Drawing:
    """Rows of panels as one picture."""
    columns = max(len(row) for row in rows)
    tallest = [max(panel.pixels.shape[0] / panel.pixels.shape[1] for panel in row) for row in rows]
    heights = [min(ratio, 2.0) * _INCH + 0.85 for ratio in tallest]
    width = max(columns * (_INCH + 0.35), 4.5)
    lines = textwrap.wrap(caption, int(width * 14.5)) if caption else []
    foot = 0.2 + 0.17 * len(lines)
    figure = Figure(figsize=(width, sum(heights) + foot), dpi=_DPI, facecolor="white")
    grid = figure.add_gridspec(
        len(rows), columns, height_ratios=heights, left=0.02, right=0.98, top=1 - 0.4 / (sum(heights) + foot),
        bottom=(foot + 0.42) / (sum(heights) + foot), wspace=0.08, hspace=0.3,
    )  # fmt: skip
    for i, row in enumerate(rows):
        for j, panel in enumerate(row):
            _draw_panel(figure, figure.add_subplot(grid[i, j]), panel)
    figure.text(0.02, 0.1 / (sum(heights) + foot), "\n".join(lines), fontsize=7.5, va="bottom", color="0.25")
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return Drawing(np.asarray(canvas.buffer_rgba())[..., :3].copy(), metadata)


def _draw_panel(figure: Figure, axes: Axes, panel: Panel) -> None:
    shown = _fit(panel.pixels, int(_INCH * _DPI * 1.5))
    axes.imshow(shown, interpolation="nearest" if max(shown.shape) < 3 * _DPI else "antialiased")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_title(_wrapped(panel.title, 2), fontsize=9)
    text: dict[str, Any] = {"transform": axes.transAxes, "ha": "center", "fontsize": 7.5}
    if panel.bar is not None and panel.bar.blank:
        axes.text(0.5, 0.5, _wrapped(panel.bar.blank, 8), va="center", color="crimson", backgroundcolor="white", **text)
    elif panel.bar is not None:
        _draw_bar(figure, axes, panel.bar)
    if panel.note:
        axes.text(0.5, -0.02, _wrapped(panel.note, 2), va="top", color="0.25", **text)


def _draw_bar(figure: Figure, axes: Axes, heat: Heatmap) -> None:
    ticks = [-heat.limit, 0.0, heat.limit] if heat.signed else [0.0, heat.limit]
    inset = axes.inset_axes((0.0, -0.07, 1.0, 0.035))
    scale = ScalarMappable(Normalize(ticks[0], heat.limit), _colormap(heat.signed))
    bar = figure.colorbar(scale, cax=inset, orientation="horizontal", ticks=ticks)
    bar.ax.set_xticklabels([f"{tick:.2g}" for tick in ticks], fontsize=7)
    labels = bar.ax.get_xticklabels()
    labels[0].set_horizontalalignment("left")
    labels[-1].set_horizontalalignment("right")
    bar.outline.set_visible(False)
    beyond = f", {heat.clipped:.1%} beyond" if heat.clipped else ""
    bar.set_label(f"score per unit of input; {CHANNELS[heat.channels]}{beyond}", fontsize=6.5)


def _wrapped(text: str, most: int) -> str:
    """At most `most` lines of a panel's width; the line breaks in the text are kept."""
    lines = [line for part in text.split("\n") for line in textwrap.wrap(part, 46)]
    return "\n".join(lines[:most])


def _on_photo(
    heat: Heatmap, size: tuple[int, ...], box: tuple[float, float, float, float]
) -> tuple[np.ndarray, np.ndarray]:
    """The map's opacity (H, W) and colours (H, W, 3) where each pixel of the photo lies in the map, bilinearly."""
    scaled = np.nan_to_num(heat.values / heat.limit) if heat.limit > 0 else np.zeros_like(heat.values)
    if heat.certain is not None:
        scaled = np.where(heat.certain, scaled, 0)
    high, wide = size
    left, top, right, bottom = box
    # grid_sample's coordinates run from -1 to 1 over the map's own extent, pixel centres half a step inside.
    x = (np.arange(wide) + 0.5 - left) / (right - left) * 2 - 1
    y = (np.arange(high) + 0.5 - top) / (bottom - top) * 2 - 1
    grid = torch.from_numpy(np.stack(np.meshgrid(x, y), -1))[None]
    image = torch.from_numpy(np.clip(scaled, -1, 1))[None, None]
    spread = torch.nn.functional.grid_sample(image, grid, padding_mode="border", align_corners=False)[0, 0].numpy()
    rgb = _colormap(heat.signed)((spread + 1) / 2 if heat.signed else spread)[..., :3]
    return np.abs(spread), rgb


def _colormap(signed: bool) -> Colormap:
    # An odd number of colours has one in the middle, so that zero is exactly neutral.
    return colormaps["RdBu_r"].resampled(257) if signed else colormaps["inferno"]


def _fit(pixels: UInt8[np.ndarray, "h w 3"], most: int) -> UInt8[np.ndarray, "h w 3"]:
    """At most `most` pixels a side: a page of 50-megapixel photos is still a page."""
    if max(pixels.shape) <= most:
        return pixels
    image = Image.fromarray(pixels)
    image.thumbnail((most, most), Image.Resampling.LANCZOS)
    return np.asarray(image)

"""Pictures of image maps: heatmap, overlay, uncertainty view, and pages of them with captions and a colour bar.

- A page is laid out in whole pixels and a map enlarged by a whole number, so that no feature is drawn wider than
  another, as stretching would.
- matplotlib is loaded when this file is, which happens when a picture is drawn. It gives the colours and sets the text.
"""

import io
import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from PIL import Image, PngImagePlugin

from pellucid.core.input import View
from pellucid.errors import OutputError
from pellucid.modalities.image.heatmap import CHANNELS, Heatmap, spread

__all__ = ["Drawing", "Panel", "Sheet", "colours", "compose", "cropped", "inscribed", "overlay_pixels", "reduced"]

_DPI = 100
_SIDE = 448  # pixels of a panel: twice those of most networks' inputs
_GAP = 32
_TITLE, _SMALL = 19, 16  # pixels from one line to the next, in titles of 11 points and text of 9
_BAR = 10
_BROKEN = (255, 0, 255)  # NaN and infinity: in no scale

# An odd number of colours has one in the middle, so that zero is exactly neutral; inferno's first is not quite black.
_SIGNED = colormaps["RdBu_r"].resampled(257)
_UNSIGNED = ListedColormap([(0.0, 0.0, 0.0), *colormaps["inferno"](np.arange(1, 256))[:, :3].tolist()])


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
    rgb = _coloured(_scaled(heat), heat.signed)
    if heat.certain is not None:
        rgb[~heat.certain] = 92 + 0.2 * rgb[~heat.certain].mean(-1, keepdims=True)
    rgb[~np.isfinite(heat.values)] = _BROKEN
    return rgb


def overlay_pixels(view: View, heat: Heatmap) -> UInt8[np.ndarray, "h w 3"]:
    """The map over its photo at the photo's own size, the part that the model never saw hatched."""
    photo = view.preview.numpy()
    high, wide = photo.shape[:2]
    left, top, right, bottom = view.geometry["box"]
    down = spread(high, top, bottom, heat.values.shape[0]).astype(np.float32)
    along = spread(wide, left, right, heat.values.shape[1]).T.astype(np.float32)
    scaled = down @ _scaled(heat) @ along
    opacity = scaled[..., None] ** 2  # in proportion to it, the many small values would be a haze over the photo
    grey = photo.mean(-1, keepdims=True, dtype=np.float32)
    blended = (38 + 0.7 * grey) * (1 - opacity) + _coloured(scaled, heat.signed) * opacity
    blended[down @ ~np.isfinite(heat.values) @ along > 0] = _BROKEN
    seen = np.zeros((high, wide), dtype=bool)
    seen[math.floor(top) : math.ceil(bottom), math.floor(left) : math.ceil(right)] = True
    blended[~seen] = np.where(_hatching(high, wide)[..., None], 190, 25 + 0.4 * grey)[~seen]
    return np.asarray(np.round(blended), dtype=np.uint8)


def reduced(view: View) -> View:
    """The view with its photo no larger than a panel, for a page."""
    photo = view.preview.numpy()
    if max(photo.shape) <= _SIDE:
        return view
    small = _fitted(photo)
    high, wide = small.shape[0] / photo.shape[0], small.shape[1] / photo.shape[1]
    left, top, right, bottom = view.geometry["box"]
    geometry = {"box": [left * wide, top * high, right * wide, bottom * high], "size": list(small.shape[:2])}
    return View(view.kind, geometry, torch.from_numpy(small))


def cropped(view: View) -> View:
    """What the model sees of the photo, alone and as large as fits into a panel."""
    photo = Image.fromarray(view.preview.numpy())
    left, top, right, bottom = view.geometry["box"]
    share = _SIDE / max(right - left, bottom - top)
    wide, high = max(round((right - left) * share), 1), max(round((bottom - top) * share), 1)
    seen = np.array(photo.resize((wide, high), Image.Resampling.BICUBIC, box=(left, top, right, bottom)))
    return View(view.kind, {"box": [0, 0, wide, high], "size": [high, wide]}, torch.from_numpy(seen))


def inscribed(pixels: UInt8[np.ndarray, "h w 3"], text: str) -> UInt8[np.ndarray, "h w 3"]:
    """The picture with a text along its lower edge."""
    sheet = Sheet(pixels)
    style: dict[str, Any] = {"ha": "center", "va": "bottom", "color": "crimson", "backgroundcolor": "white"}
    lines = _wrapped(text, max(sheet.wide // 9, 12), 12)
    sheet.write(sheet.wide / 2, sheet.high - 8, lines, 9, 0.9 * sheet.wide, **style)
    return sheet.drawn()


def compose(rows: Sequence[Sequence[Panel]], metadata: str, caption: str = "") -> Drawing:
    """Rows of panels as one picture."""
    wide = max(len(row) for row in rows) * (_SIDE + _GAP) + _GAP
    lines = textwrap.wrap(caption, (wide - 2 * _GAP) * 2 // 13)
    places, y = [], _GAP // 2
    for row in rows:
        y += _TITLE * max(_lines(_title(panel)) for panel in row) + 6
        places += [(panel, _GAP + i * (_SIDE + _GAP), y) for i, panel in enumerate(row)]
        y += max(_height(panel) for panel in row) + _GAP // 2
    sheet = Sheet(np.full((y + _SMALL * len(lines) + _GAP // 2, wide, 3), 255, dtype=np.uint8))
    for panel, left, top in places:
        _draw_panel(sheet, panel, left, top)
    sheet.write(_GAP, y, "\n".join(lines), 9, wide - 2 * _GAP, ha="left", va="top", color="0.25")
    return Drawing(sheet.drawn(), metadata)


class Sheet:
    """Pixels with pictures and text put on them; places are in pixels from the upper left."""

    def __init__(self, pixels: UInt8[np.ndarray, "h w 3"]) -> None:
        self.pixels = pixels
        self.high, self.wide = pixels.shape[:2]
        # Half a pixel more, which the canvas cuts off: size / dpi * dpi can round to a pixel less.
        self.figure = Figure(figsize=((self.wide + 0.5) / _DPI, (self.high + 0.5) / _DPI), dpi=_DPI)
        self.canvas = FigureCanvasAgg(self.figure)

    def paste(self, left: int, top: int, pixels: UInt8[np.ndarray, "h w 3"]) -> None:
        """Put a picture with a thin frame around it."""
        high, wide = pixels.shape[:2]
        self.pixels[top - 1 : top + high + 1, left - 1 : left + wide + 1] = 60
        self.pixels[top : top + high, left : left + wide] = pixels

    def write(self, x: float, y: float, text: str, size: float, room: float, **style: Any) -> None:
        """Set a text, smaller if it is wider than `room`. Labels are never read as formulas."""
        place = x / self.wide, 1 - y / self.high
        drawn = self.figure.text(*place, text, fontsize=size, parse_math=False, usetex=False, **style)
        width = drawn.get_window_extent(self.canvas.get_renderer()).width
        if width > room:
            drawn.set_fontsize(max(size * room / width, 1))

    def drawn(self) -> UInt8[np.ndarray, "h w 3"]:
        """The pixels with their text."""
        self.figure.figimage(self.pixels, origin="upper")
        self.canvas.draw()
        return np.asarray(self.canvas.buffer_rgba())[..., :3].copy()


def _draw_panel(sheet: Sheet, panel: Panel, left: int, top: int) -> None:
    shown = _fitted(panel.pixels)
    high, wide = shown.shape[:2]
    middle, y = left + _SIDE / 2, top + high + 8
    sheet.paste(left + (_SIDE - wide) // 2, top, shown)
    sheet.write(middle, top - 6, _title(panel), 11, _SIDE, ha="center", va="bottom", color="black")
    if panel.bar is not None and not panel.bar.blank:
        _draw_bar(sheet, panel.bar, left, y)
        y += _BAR + _SMALL + 4
    color = "crimson" if panel.bar is not None and panel.bar.blank else "0.25"
    sheet.write(middle, y, _below(panel), 9, _SIDE, ha="center", va="top", color=color)


def _draw_bar(sheet: Sheet, heat: Heatmap, left: int, top: int) -> None:
    steps = np.linspace(-1 if heat.signed else 0, 1, _SIDE)
    sheet.paste(left, top, _coloured(np.tile(steps, (_BAR, 1)), heat.signed))
    ticks = {"left": -heat.limit if heat.signed else 0.0, "right": heat.limit}
    for (side, tick), x in zip(ticks.items(), (left, left + _SIDE), strict=True):
        sheet.write(x, top + _BAR + 4, f"{tick:.2g}", 9, _SIDE / 3, ha=side, va="top", color="0.25")
    if heat.signed:
        sheet.write(left + _SIDE / 2, top + _BAR + 4, "0", 9, _SIDE / 3, ha="center", va="top", color="0.25")


def _height(panel: Panel) -> int:
    """Of a panel's picture and all that stands below it."""
    bar = _BAR + _SMALL + 4 if panel.bar is not None and not panel.bar.blank else 0
    return len(_fitted(panel.pixels)) + 8 + bar + _SMALL * _lines(_below(panel))


def _title(panel: Panel) -> str:
    return _wrapped(panel.title, 50, 4)


def _below(panel: Panel) -> str:
    heat = panel.bar
    about = ""
    if heat is not None:
        beyond = f", {heat.clipped:.1%} of the pixels beyond" if heat.clipped else ""
        unit = f"{heat.unit}; " if heat.unit else ""
        about = heat.blank or f"{unit}{CHANNELS[heat.channels]}{beyond}"
    return _wrapped(f"{about}\n{panel.note}".strip(), 62, 8)


def _lines(text: str) -> int:
    return text.count("\n") + 1 if text else 0


def _wrapped(text: str, width: int, most: int) -> str:
    """At most `most` lines; the line breaks in the text are kept."""
    lines = [line for part in text.split("\n") for line in textwrap.wrap(part, width)]
    if len(lines) > most:
        lines[most - 1 :] = [f"{lines[most - 1][: width - 2]} …"]
    return "\n".join(lines)


def _scaled(heat: Heatmap) -> Float[np.ndarray, "h w"]:
    """The values in units of the limit, -1 .. 1; 0 where they are not finite."""
    finite = np.where(np.isfinite(heat.values), heat.values, 0)
    return np.clip(finite / heat.limit, -1, 1) if heat.limit > 0 else np.zeros_like(finite)


def _coloured(scaled: Float[np.ndarray, "h w"], signed: bool) -> UInt8[np.ndarray, "h w 3"]:
    rgba = _SIGNED((scaled + 1) / 2, bytes=True) if signed else _UNSIGNED(scaled, bytes=True)
    return np.asarray(rgba[..., :3], dtype=np.uint8)


def _hatching(high: int, wide: int) -> Bool[np.ndarray, "h w"]:
    """Diagonal lines, 12 pixels from one to the next in a picture of 448 pixels."""
    period = max(12 * max(high, wide) // 448, 4)
    return (np.add.outer(np.arange(high), np.arange(wide)) % period) < max(period // 6, 1)


def _fitted(pixels: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "h2 w2 3"]:
    """As large as fits into a panel: enlarged by a whole number, or reduced."""
    high, wide = pixels.shape[:2]
    times = _SIDE // max(high, wide)
    if times:
        return pixels.repeat(times, 0).repeat(times, 1)
    share = _SIDE / max(high, wide)
    size = (max(round(wide * share), 1), max(round(high * share), 1))
    return np.array(Image.fromarray(pixels).resize(size, Image.Resampling.BOX))

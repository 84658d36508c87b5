"""How certain a sampled map is, and how certain fewer or more samples would make it: its error drawn against them.

    error(n) = sqrt(squared(n) / P)        squared: the map's mean squared error per element, P: its signal's power

Both come from the accumulated draws alone, so a stored result is drawn without its model. The plain mean's squared
error falls as 1 / n, so its error is a straight line of slope -1/2 on logarithmic axes.
"""

import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw

from pellucid.core.attribution import Attribution
from pellucid.core.estimator import Estimator, Mean, Variance
from pellucid.core.moments import Moments
from pellucid.core.recipe import decode
from pellucid.errors import ArgumentError
from pellucid.modalities.image.picture import metadata, method_caption, title_of

if TYPE_CHECKING:
    from pellucid.modalities.image.draw import Drawing, Sheet

__all__ = ["Curves", "convergence", "curves"]

_DOUBLINGS, _STEPS = 4, 16  # to each side of the present number of samples, and points of a curve in each
_ENOUGH = 1e12  # times the samples: what does not fall is left

_LEFT, _TOP, _WIDE, _HIGH, _RIGHT = 76, 106, 448, 300, 124  # pixels of the margins and of the axes between them
_LINE, _SMALL, _GAP = 18, 16, 16
_LETTERS = 88  # of a line of the caption
_FINE = 4  # lines are drawn so many times larger, then reduced
_DOT, _THICK, _DASH = 5, 2.2, 4  # pixels, and points of a dash
_COLOURS = (33, 102, 172), (128, 128, 128)
_FRAME, _GRID, _MARK = 60, 238, 190
_ROUND = {1.0: "noise = signal", 0.5: "noise = ½ signal"}


@dataclass(frozen=True, eq=False)
class Curves:
    """Relative errors at so many `samples`, by estimator: the one that was used, then the plain mean if it is another.

    `floor` is the part that more samples do not lower. Where no signal was found yet (`bound`) an error is the least
    that it can be.
    """

    samples: Float[np.ndarray, " points"]
    errors: Mapping[str, Float[np.ndarray, " points"]]
    floor: float
    bound: bool = False

    @property
    def now(self) -> int:
        """Where the present number of samples stands: as many doublings from the end as were asked for."""
        return len(self.samples) - 1 - _DOUBLINGS * _STEPS

    @property
    def known(self) -> Float[np.ndarray, " some"]:
        """Every error that a logarithmic axis has."""
        each = np.concatenate(list(self.errors.values()))
        return np.asarray(each[np.isfinite(each) & (each > 0)])


def convergence(a: Attribution) -> "Drawing":
    """The map's relative error, as in `a.estimated_error`, against the number of samples; both axes logarithmic.

    One curve is that of the estimator which `a` used, the other that of the plain mean of the same samples. The dot is
    the present map; to its left and right is what the same spread predicts. Nothing is sampled again: a loaded result
    is drawn as well.

    Raises:
        ArgumentError: several inputs, or a map without an estimated error.

    Example:
        >>> import torch, pellucid as pl
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2))
        >>> a = pl.SmoothGrad(n_samples=50)(pl.TorchModel(net), torch.rand(1, 4))
        >>> pl.convergence(a).pixels.ndim
        3
    """
    from pellucid.modalities.image.draw import Drawing

    found = curves(a)
    return Drawing(_drawn(a, found), metadata([a]))


def curves(a: Attribution) -> Curves:
    """The error for a sixteenth of the samples up to sixteen times as many, from what was accumulated.

    Raises:
        ArgumentError: several inputs, or a map without an estimated error.
    """
    if len(a) != 1:
        raise ArgumentError(f"The convergence of one input is drawn, and this holds {len(a)}. Write convergence(a[i]).")
    if a.estimated_error is None or "draws" not in a.estimate.state:
        raise ArgumentError(
            f"This map has no estimated error whose fall could be drawn ({a.stopped}). "
            "A SmoothGrad of two or more samples, all of them noisy, has one."
        )
    estimator = _estimator(a)
    moments = Moments.of(a.estimate.state, [0], a.scores, estimator.order)
    finished = estimator.finish(moments)
    times = np.exp2(np.arange(-_DOUBLINGS * _STEPS, _DOUBLINGS * _STEPS + 1) / _STEPS)
    times = times[times * moments.count >= 1]  # less than a draw is none
    power, plain = float(finished.power), np.array([float(finished.plain(t)) for t in times.tolist()])
    bound = math.isinf(float(a.estimated_error))
    if bound:  # the signal's power is two standard errors above what was found at the most
        power = max(power + 2 * float(finished.power_error), 0.0)
        return Curves(a.samples_used * times, {"plain mean, at least": _relative(plain, power)}, 0.0, bound)
    own = np.array([float(finished.squared(t)) for t in times.tolist()])
    errors = {estimator.words or ("variance" if "m4" in a.estimate.state else "plain mean"): _relative(own, power)}
    if not np.array_equal(own, plain):
        errors["plain mean of the same samples"] = _relative(plain, power)
    floor = float(_relative(np.array([float(finished.squared(_ENOUGH))]), power)[0])
    return Curves(a.samples_used * times, errors, floor if floor >= 0.005 else 0.0)


def _estimator(a: Attribution) -> Estimator:
    """What the map was made with; methods that have no such setting take the mean, or the variance."""
    chosen = getattr(decode(a.recipe.explainer), "estimator", None)
    return chosen if isinstance(chosen, Estimator) else Variance() if "m4" in a.estimate.state else Mean()


def _relative(squared: np.ndarray, power: float) -> np.ndarray:
    return np.sqrt(squared / power) if power > 0 else np.full_like(squared, np.nan)


def _missing(a: Attribution, found: Curves) -> str:
    """Why the error is not drawn, or not all that is known of it."""
    some = bool(found.known.size)
    if not np.isfinite(a.scores.detach().cpu().numpy()).all():
        return "The map holds NaN or infinite values, so its error is unknown."
    if found.bound:
        least = " Dashed: the least that it can be, were the signal's power two standard errors above what was found."
        return f"No signal can be told from noise yet, so the error is unknown.{least if some else ''}"
    return "" if some else "Every draw gave the same map: its error is zero, which no logarithmic axis has."


def _caption(a: Attribution, found: Curves) -> str:
    sides = "; the lines left and right of the dot are what the same spread predicts" if not found.bound else ""
    bias = f" An estimated bias of {found.floor:.2g} is in it, which more samples do not lower." if found.floor else ""
    return f"{method_caption([a])}. Estimated from the spread of independent draws{sides}.{bias}"


@dataclass(frozen=True)
class _Axes:
    """Logarithmic axes in pixels of the page: the range of samples from left to right, of errors from low to high."""

    samples: tuple[float, float]
    errors: tuple[float, float]

    @classmethod
    def around(cls, found: Curves) -> "_Axes":
        known = found.known if found.known.size else np.array([0.2, 2.0])
        return cls((found.samples[0], found.samples[-1]), (float(known.min()) / 1.2, float(known.max()) * 1.2))

    def x(self, samples: Any) -> Any:
        low, high = np.log(self.samples)
        return _LEFT + _WIDE * (np.log(samples) - low) / (high - low)

    def y(self, error: Any) -> Any:
        low, high = np.log(self.errors)
        return _TOP + _HIGH * (high - np.log(error)) / (high - low)


def _ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times the powers of ten, or the powers alone where those would be many."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)))
    steps = (1, 2, 5) if len(powers) <= 4 else (1,)
    return [v for k in (*powers, powers.stop) for s in steps if low <= (v := float(f"{s}e{k}")) <= high]


def _drawn(a: Attribution, found: Curves) -> UInt8[np.ndarray, "h w 3"]:
    from pellucid.modalities.image.draw import Sheet

    missing, below = textwrap.wrap(_missing(a, found), _LETTERS), textwrap.wrap(_caption(a, found), _LETTERS)
    foot = _TOP + _HIGH + 3 * _LINE
    wide, high = _LEFT + _WIDE + _RIGHT, foot + _SMALL * len(missing + below) + _GAP
    axes = _Axes.around(found)
    sheet = Sheet(np.full((high, wide, 3), 255, dtype=np.uint8))
    sheet.write(_LEFT, _GAP, title_of(a), 11, _WIDE + _RIGHT / 2, ha="left", va="top", color="black")
    _draw_axes(sheet, axes, a.samples_used)
    each = list(enumerate(found.errors.items())) if found.known.size else []
    for place, (name, errors) in reversed(each):  # the first lies above
        _draw_curve(sheet, axes, found, errors, _COLOURS[place])
        _draw_name(sheet, name, place, found.bound)
    _draw_values(sheet, axes, found)
    for i, line in enumerate(missing + below):
        colour = "crimson" if i < len(missing) else "0.25"
        sheet.write(_GAP, foot + _SMALL * i, line, 9, wide - 2 * _GAP, ha="left", va="top", color=colour)
    return sheet.drawn()


def _draw_axes(sheet: "Sheet", axes: _Axes, n: int) -> None:
    """The frame with ticks, the number of samples and what is written beside them."""
    bottom, right = _TOP + _HIGH, _LEFT + _WIDE
    sheet.paste(_LEFT, _TOP, np.full((_HIGH, _WIDE, 3), 255, dtype=np.uint8))
    inside = sheet.pixels[_TOP:bottom, _LEFT:right]
    for samples in _ticks(*axes.samples):
        inside[:, min(round(axes.x(samples)) - _LEFT, _WIDE - 1)] = _GRID
        sheet.write(axes.x(samples), bottom + 5, f"{samples:g}", 9, 60, ha="center", va="top", color="0.25")
    for error in _ticks(*axes.errors):
        inside[min(round(axes.y(error)) - _TOP, _HIGH - 1)] = _MARK if error in _ROUND else _GRID
        sheet.write(_LEFT - 7, axes.y(error), f"{error:g}", 9, 45, ha="right", va="center", color="0.25")
        if error in _ROUND:
            sheet.write(right + 8, axes.y(error), _ROUND[error], 9, _RIGHT - 12, ha="left", va="center", color="0.45")
    inside[:, round(axes.x(n)) - _LEFT] = _MARK
    sheet.write(axes.x(n), _TOP - 5, f"n = {n}", 9, 90, ha="center", va="bottom", color="0.25")
    sheet.write(_LEFT + _WIDE / 2, bottom + 5 + _LINE, "samples", 9, _WIDE, ha="center", va="top", color="0.25")
    middle = _TOP + _HIGH / 2
    sheet.write(_GAP, middle, "relative error", 9, 40, ha="left", va="center", color="0.25", rotation=90)


def _draw_curve(sheet: "Sheet", axes: _Axes, found: Curves, errors: np.ndarray, colour: tuple[int, int, int]) -> None:
    """A line with a dot at the present number of samples; a bound is dashed and has none."""
    seen = np.isfinite(errors) & (errors > 0)
    points = list(zip(axes.x(found.samples[seen]).tolist(), axes.y(errors[seen]).tolist(), strict=True))
    pieces = [points[i : i + _DASH] for i in range(0, len(points), 2 * _DASH - 2)] if found.bound else [points]
    _blend(sheet.pixels, colour, lines=pieces)
    if found.bound:
        return
    x, y = axes.x(found.samples[found.now]), axes.y(errors[found.now])
    _blend(sheet.pixels, (255, 255, 255), dot=(x, y, _DOT + 2))
    _blend(sheet.pixels, colour, dot=(x, y, _DOT))


def _draw_name(sheet: "Sheet", name: str, place: int, dashed: bool) -> None:
    """A line of the legend."""
    y = _GAP + _LINE + 8 + _LINE * place
    for start in (0, 16) if dashed else (0, 8, 16):
        sheet.pixels[y + 7 : y + 9, _LEFT + start : _LEFT + start + 8] = _COLOURS[place]
    sheet.write(_LEFT + 32, y, name, 9, _WIDE - 32, ha="left", va="top", color="0.1")


def _draw_values(sheet: "Sheet", axes: _Axes, found: Curves) -> None:
    """The present errors: that of the upper curve to the right above its dot, where falling curves leave room."""
    now = {place: float(errors[found.now]) for place, errors in enumerate(found.errors.values())}
    shown = {place: value for place, value in now.items() if not found.bound and 0 < value < math.inf}
    for place, value in shown.items():
        above = value == max(shown.values())
        style = {"ha": "left", "va": "bottom"} if above else {"ha": "right", "va": "top"}
        x, y = axes.x(found.samples[found.now]), axes.y(value)
        away = _DOT + 2 if above else -_DOT - 2
        color = "#{:02x}{:02x}{:02x}".format(*_COLOURS[place])
        sheet.write(
            x + away, y - away, f"{value:.2f}" if value >= 0.1 else f"{value:.2g}", 10, 60, color=color, **style
        )


def _blend(
    pixels: UInt8[np.ndarray, "h w 3"],
    colour: tuple[int, int, int],
    *,
    lines: Sequence[Sequence[tuple[float, float]]] = (),
    dot: tuple[float, float, float] | None = None,
) -> None:
    """Draw lines, or a dot at x and y with its radius, into the pixels, with soft edges."""
    high, wide = pixels.shape[:2]
    mask = Image.new("L", (wide * _FINE, high * _FINE))
    brush = ImageDraw.Draw(mask)
    for line in lines:
        brush.line([(x * _FINE, y * _FINE) for x, y in line], 255, round(_THICK * _FINE), "curve")
    if dot is not None:
        brush.circle((dot[0] * _FINE, dot[1] * _FINE), dot[2] * _FINE, 255)
    ink = np.asarray(mask.reduce(_FINE), dtype=np.float32)[..., None] / 255
    pixels[:] = np.round(pixels * (1 - ink) + np.array(colour) * ink)

"""Occlusion: how much the score falls when a part of the input is taken away.

    M_j = v(all) - v(all without segment j)              (Robnik-Sikonja & Kononenko 2008; Captum: FeatureAblation)
    M_p = mean over windows w around p of v(all) - v(all without w)    (Zeiler & Fergus 2014, 4.2; Captum: Occlusion)

Segments do not overlap, windows do: they slide. Signed, in units of the score: positive where the part speaks for the
target. Nothing is sampled; one model call for each segment or window, and one for the input.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from pellucid.core.card import Applicability, Cost, MethodCard, Modality, Needs, Per, Scope, Stage
from pellucid.core.checks import check_count
from pellucid.core.queries import Fit, Question
from pellucid.core.segments import places_of
from pellucid.errors import ArgumentError, ModelError
from pellucid.explainers._queried import Masked, Place, Queried, Segmented

__all__ = ["Occlusion", "SlidingOcclusion"]


@dataclass(frozen=True, kw_only=True)
class Occlusion(Segmented):
    """The fall of the score when each segment alone is taken away (Robnik-Sikonja & Kononenko 2008).

    `segments` divides each input, `baseline` stands in for what is absent.

    Raises:
        ArgumentError: a setting of another type.

    Example:
        >>> import torch, pellucid as pl
        >>> model = pl.FunctionModel(lambda rows: rows @ [1.0, 2.0, -1.0], output="regression")
        >>> pl.Occlusion(baseline=pl.Zeros())(model, torch.tensor([[1.0, 3.0, 2.0]])).scores
        tensor([[ 1.,  6., -2.]])
    """

    @property
    def card(self) -> MethodCard:
        return MethodCard(
            name="occlusion",
            title="Occlusion",
            scope=Scope.LOCAL,
            stage=Stage.POST_HOC,
            applicability=Applicability.MODEL_AGNOSTIC,
            needs=Needs.SCORES,
            cost=Cost(forward=2, segments=1),
            reference="Zeiler & Fergus 2014, arXiv:1311.2901",
            unit="score",
            per=Per.SEGMENT,
            channels="sum",
            caveats=("what two segments do together, or each in the other's absence, is not seen",),
        )

    def question(self, place: Place, calls: int) -> Question:
        return _WithoutOne(place)


@dataclass(frozen=True, kw_only=True)
class SlidingOcclusion(Queried):
    """The fall of the score when a window is taken away, the mean over all windows that cover a place (Zeiler & Fergus
    2014; Captum's Occlusion, with all channels in the window). It slides over pictures and signals.

    `window` is the length of its sides in places and `stride` that of its steps, one number or one for each axis. The
    last window may reach over the edge. Of a side that is no longer than the window there is one.

    Raises:
        ArgumentError: not whole numbers from 1, steps longer than the window, which would leave places out; when used,
            inputs without axes behind their channels, or with another number of them.

    Example:
        >>> import torch, pellucid as pl
        >>> model = pl.FunctionModel(lambda rows: rows[:, 0] @ [0.0, 4.0, 0.0, 0.0], output="regression")
        >>> pl.SlidingOcclusion(window=2, stride=1, baseline=pl.Zeros())(model, torch.ones(1, 1, 4)).scores
        tensor([[[4., 4., 2., 0.]]])
    """

    window: int | tuple[int, ...] = 32
    stride: int | tuple[int, ...] = 16

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("window", "stride"):
            for side in _each(getattr(self, name)) or (0,):
                check_count(name, side)
        windows, strides = _each(self.window), _each(self.stride)
        axes = max(len(windows), len(strides))
        if {len(windows), len(strides)} - {1, axes}:
            raise ArgumentError(f"`window` and `stride` have a number for each axis. Got {self.window}, {self.stride}.")
        pairs = zip(_along(self.window, axes), _along(self.stride, axes), strict=True)
        if any(stride > window for window, stride in pairs):
            raise ArgumentError(
                f"`stride` is no more than `window`, or places between windows would never be absent. Got a stride of "
                f"{self.stride} and a window of {self.window}."
            )

    @property
    def card(self) -> MethodCard:
        return MethodCard(
            name="sliding-occlusion",
            title="Sliding occlusion",
            scope=Scope.LOCAL,
            stage=Stage.POST_HOC,
            applicability=Applicability.MODEL_AGNOSTIC,
            needs=Needs.SCORES,
            cost=Cost(forward=2, segments=1),  # a window counts as a segment
            reference="Zeiler & Fergus 2014, arXiv:1311.2901",
            unit="score",
            per=Per.PIXEL,
            channels="sum",
            modalities=frozenset(Modality) - {Modality.TABLE},
            caveats=("what lies apart is never absent together", "finer than the window only as its edges are"),
        )

    def check_features(self, features: tuple[int, ...]) -> None:
        axes = len(places_of(features)) if len(features) > 1 else 0
        named = {len(_each(self.window)), len(_each(self.stride))} - {1}
        if not axes or named - {axes}:
            raise ArgumentError(
                "Windows slide over the axes behind the channels of pictures (B, C, H, W) or signals (B, C, T), and "
                f"have one length for all of them or one for each. Got inputs of {features}, window {self.window}, "
                f"stride {self.stride}. For tables and several tensors take Occlusion."
            )

    def question(self, place: Place, calls: int) -> Question:
        axes = place.labels.ndim
        return _Windows(place, _along(self.window, axes), _along(self.stride, axes))


def _each(sides: int | tuple[int, ...]) -> tuple[int, ...]:
    return sides if isinstance(sides, tuple) else (sides,)


def _along(sides: int | tuple[int, ...], axes: int) -> tuple[int, ...]:
    """A number for each axis."""
    each = _each(sides)
    return each * axes if len(each) == 1 else each


class _WithoutOne(Masked):
    """The whole input, then the input without each segment."""

    end = 1

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        self.size = self.players + 1

    def masks(self, queries: Sequence[int]) -> np.ndarray:
        return np.asarray(np.asarray(queries)[:, None] != np.arange(1, self.players + 1))

    def fit(self, scores: Float[np.ndarray, " n"]) -> Fit:
        falls = _falls(scores)
        lost = np.flatnonzero(np.isnan(falls))
        findings = (f"Zero stands for segments whose absence has no score: {_listed(lost)}.",) if len(lost) else ()
        return Fit(np.nan_to_num(falls), notes={"segments": float(self.players)}, findings=findings)


class _Windows(Masked):
    """The whole input, then the input without each window, row by row."""

    end = 1

    def __init__(self, place: Place, windows: Sequence[int], strides: Sequence[int]) -> None:
        super().__init__(place)
        self.places = tuple(place.labels.shape)
        each = [_slices(*axis) for axis in zip(self.places, windows, strides, strict=True)]
        self.windows = list(itertools.product(*each))
        self.size = len(self.windows) + 1

    def masks(self, queries: Sequence[int]) -> np.ndarray:
        present = np.ones((len(queries), *self.places), dtype=bool)
        for row, query in zip(present, queries, strict=True):
            if query:
                row[self.windows[query - 1]] = False
        return present.reshape(len(queries), -1)

    def codes(self, queries: Sequence[int]) -> None:
        """No two windows are the same, and their masks at once would fill the memory."""

    def fit(self, scores: Float[np.ndarray, " n"]) -> Fit:
        total, count = np.zeros(self.places), np.zeros(self.places)
        for window, fall in zip(self.windows, _falls(scores), strict=True):
            if np.isfinite(fall):
                total[window] += fall
                count[window] += 1
        lost = int((count == 0).sum())
        findings = (f"Zero stands for {lost} places of which no window has a score.",) if lost else ()
        values = np.divide(total, count, out=np.zeros_like(total), where=count > 0)
        return Fit(values.ravel(), notes={"windows": float(len(self.windows))}, findings=findings)


def _slices(side: int, window: int, stride: int) -> list[slice]:
    """The windows along an axis: the last one is the first that reaches its end, and may reach over it."""
    steps = -(-max(side - window, 0) // stride)
    return [slice(step * stride, min(step * stride + window, side)) for step in range(steps + 1)]


def _falls(scores: Float[np.ndarray, " n"]) -> Float[np.ndarray, " m"]:
    """How much less each score is than the first."""
    if not np.isfinite(scores[0]):
        raise ModelError("Occlusion compares with the score of the input itself, and the model has none for it.")
    return np.asarray(scores[0] - scores[1:])


def _listed(numbers: np.ndarray) -> str:
    shown = ", ".join(map(str, numbers[:9].tolist()))
    return shown + (" ..." if len(numbers) > 9 else "")

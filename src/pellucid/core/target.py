"""What is explained: one number per input, made of the model's outputs. Settled once, on the clean input."""

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from pellucid.core.checks import check_count
from pellucid.core.label import Labels
from pellucid.core.prediction import OutputKind, Prediction
from pellucid.core.recipe import Value
from pellucid.errors import ArgumentError, TargetError

__all__ = ["BoxScore", "ClassScore", "LogProb", "Margin", "Neuron", "Probability", "Region", "RegionMean", "Target",
           "TargetSpec", "Targets", "settle"]  # fmt: skip


class Target(ABC, Value):
    """A scalar function of the outputs of one input, or of what a layer gives."""

    kinds: ClassVar[tuple[OutputKind, ...]] = (OutputKind.LOGITS, OutputKind.PROBABILITIES, OutputKind.REGRESSION)
    """The kinds of outputs that it can read."""

    @property
    def reads(self) -> str | None:
        """The layer that it reads instead of the outputs."""
        return None

    def settled(self, outputs: Float[Tensor, "*k"], kind: OutputKind) -> "Target":
        """The same with what the clean outputs of one input decide: a region, a box."""
        return self

    @abstractmethod
    def score(self, outputs: Float[Tensor, "b *k"], kind: OutputKind) -> Float[Tensor, " b"]:
        """The number that is explained, for each row."""

    @property
    @abstractmethod
    def classes(self) -> tuple[int, ...]:
        """The outputs that it reads, the one in whose favour it counts first."""

    @abstractmethod
    def describe(self, labels: Labels) -> str:
        """What it is in words, for captions."""


@dataclass(frozen=True)
class ClassScore(Target):
    """Output `index` as it is: the logit of a classifier (Simonyan et al. 2013), the value of a regression.

    Example:
        >>> import torch, pellucid as pl
        >>> model = pl.TorchModel(torch.nn.Linear(3, 2), labels=["cat", "dog"])
        >>> pl.SimpleGradient()(model, torch.ones(1, 3), target="dog").target
        ClassScore(index=1)
    """

    index: int

    def __post_init__(self) -> None:
        check_count("index", self.index, least=0)

    def score(self, outputs: Float[Tensor, "b *k"], kind: OutputKind) -> Float[Tensor, " b"]:
        return outputs[:, self.index]

    @property
    def classes(self) -> tuple[int, ...]:
        return (self.index,)

    def describe(self, labels: Labels) -> str:
        return labels.short(self.index)


@dataclass(frozen=True)
class Margin(Target):
    """Output `index` minus output `against`: what speaks for one class rather than the other."""

    index: int
    against: int

    def __post_init__(self) -> None:
        check_count("index", self.index, least=0)
        check_count("against", self.against, least=0)

    def score(self, outputs: Float[Tensor, "b *k"], kind: OutputKind) -> Float[Tensor, " b"]:
        return outputs[:, self.index] - outputs[:, self.against]

    @property
    def classes(self) -> tuple[int, ...]:
        return (self.index, self.against)

    def describe(self, labels: Labels) -> str:
        return f"{labels.short(self.index)} rather than {labels.short(self.against)}"


@dataclass(frozen=True)
class LogProb(Target):
    """The logarithm of the probability of class `index`."""

    index: int

    def __post_init__(self) -> None:
        check_count("index", self.index, least=0)

    def score(self, outputs: Float[Tensor, "b *k"], kind: OutputKind) -> Float[Tensor, " b"]:
        _refuse_regression(self, kind)
        if kind is OutputKind.LOGITS:
            return torch.log_softmax(outputs, 1)[:, self.index]
        return outputs[:, self.index].log()

    @property
    def classes(self) -> tuple[int, ...]:
        return (self.index,)

    def describe(self, labels: Labels) -> str:
        return f"log probability of {labels.short(self.index)}"


@dataclass(frozen=True)
class Probability(Target):
    """The probability of class `index`. Its gradient vanishes where the model is certain; prefer `ClassScore` there."""

    index: int

    def __post_init__(self) -> None:
        check_count("index", self.index, least=0)

    def score(self, outputs: Float[Tensor, "b *k"], kind: OutputKind) -> Float[Tensor, " b"]:
        _refuse_regression(self, kind)
        return (torch.softmax(outputs, 1) if kind is OutputKind.LOGITS else outputs)[:, self.index]

    @property
    def classes(self) -> tuple[int, ...]:
        return (self.index,)

    def describe(self, labels: Labels) -> str:
        return f"probability of {labels.short(self.index)}"


@dataclass(frozen=True)
class Region(Value):
    """Some of the places of a segmentation, as runs: so many outside, so many inside, so many outside …, row by row.

    Example:
        >>> import torch, pellucid as pl
        >>> region = pl.Region.of(torch.tensor([[False, True], [True, False]]))
        >>> region.runs, region.mask().sum()
        ((1, 2, 1), tensor(2))
    """

    size: tuple[int, ...]
    runs: tuple[int, ...]

    def __post_init__(self) -> None:
        for name in ("size", "runs"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        whole = all(isinstance(run, int) and run >= 0 for run in self.runs)
        if not whole or sum(self.runs) != math.prod(self.size):
            raise ArgumentError(f"The runs of a region of {self.size} sum to {math.prod(self.size)}. Got {self.runs}.")

    @classmethod
    def of(cls, mask: Tensor) -> "Region":
        """The places where a mask (*size) is true."""
        flat = mask.detach().cpu().flatten().bool()
        ends = (torch.nonzero(flat[1:] != flat[:-1]).flatten() + 1).tolist()
        edges = [0, *ends, len(flat)]
        runs = [stop - start for start, stop in itertools.pairwise(edges)]
        return cls(tuple(mask.shape), tuple([0, *runs] if len(flat) and flat[0] else runs))

    def mask(self) -> Tensor:
        """True inside, (*size)."""
        inside = torch.arange(len(self.runs)) % 2 == 1
        return inside.repeat_interleave(torch.tensor(self.runs)).view(self.size)


@dataclass(frozen=True)
class RegionMean(Target):
    """The mean score of class `index` over a region of a segmentation; by default, where the clean input shows it.

    Example:
        >>> import torch, pellucid as pl
        >>> model = pl.TorchModel(torch.nn.Conv2d(3, 2, 1))
        >>> a = pl.SimpleGradient()(model, torch.rand(1, 3, 4, 4), pl.RegionMean(1, pl.Region((4, 4), (0, 16))))
        >>> a.scores.shape
        torch.Size([1, 3, 4, 4])
    """

    index: int
    region: Region | None = None
    kinds: ClassVar[tuple[OutputKind, ...]] = (OutputKind.SEGMENTATION,)

    def __post_init__(self) -> None:
        check_count("index", self.index, least=0)

    def settled(self, outputs: Float[Tensor, "*k"], kind: OutputKind) -> "RegionMean":
        if self.region is None:
            region = Region.of(outputs.argmax(0) == self.index)
        elif self.region.size != tuple(outputs.shape[1:]):
            raise TargetError(
                f"Expected a region of the {tuple(outputs.shape[1:])} places of the outputs. Got {self.region.size}."
            )
        else:
            region = self.region
        if not sum(region.runs[1::2]):
            raise TargetError(
                f"Class {self.index} is nowhere the likeliest on this input, so it has no region. Give one: "
                "RegionMean(index, Region.of(mask))."
            )
        return RegionMean(self.index, region)

    def score(self, outputs: Float[Tensor, "b *k"], kind: OutputKind) -> Float[Tensor, " b"]:
        assert self.region is not None  # noqa: S101  # settled
        return outputs[:, self.index].flatten(1)[:, self.region.mask().flatten().to(outputs.device)].mean(1)

    @property
    def classes(self) -> tuple[int, ...]:
        return (self.index,)

    def describe(self, labels: Labels) -> str:
        return f"{labels.short(self.index)} in its region"


@dataclass(frozen=True)
class BoxScore(Target):
    """How well a detector sees class `index` in a box: the largest overlap times score, max_j IoU(box, b_j) s_j.

    The form of D-RISE (Petsiuk et al. 2021, arXiv:2006.03204, eq. 3) for one class: boxes and scores both count. `box`
    is (left, top, right, bottom) in the detector's units; by default that with the highest score on the clean input.

    Example:
        >>> import pellucid as pl
        >>> pl.BoxScore(1, (0.0, 0.0, 8.0, 8.0)).classes
        (1,)
    """

    index: int
    box: tuple[float, ...] | None = None
    kinds: ClassVar[tuple[OutputKind, ...]] = (OutputKind.DETECTION,)

    def __post_init__(self) -> None:
        check_count("index", self.index, least=0)
        if self.box is not None:
            object.__setattr__(self, "box", tuple(map(float, self.box)))
        if self.box is not None and (len(self.box) != 4 or self.box[2] <= self.box[0] or self.box[3] <= self.box[1]):
            raise ArgumentError(f"A box is (left, top, right, bottom), right and bottom larger. Got {self.box!r}.")

    def settled(self, outputs: Float[Tensor, "*k"], kind: OutputKind) -> "BoxScore":
        if self.box is not None:
            return self
        best = outputs[int(outputs[:, 4 + self.index].argmax()), :4]
        return BoxScore(self.index, tuple(best.tolist()))

    def score(self, outputs: Float[Tensor, "b *k"], kind: OutputKind) -> Float[Tensor, " b"]:
        assert self.box is not None  # noqa: S101  # settled
        own = outputs.new_tensor(self.box)
        boxes = outputs[..., :4]
        sides = (torch.minimum(boxes[..., 2:], own[2:]) - torch.maximum(boxes[..., :2], own[:2])).clamp(min=0)
        inside = sides.prod(-1)
        area = (boxes[..., 2:] - boxes[..., :2]).clamp(min=0).prod(-1)
        overlap = inside / (area + (own[2:] - own[:2]).prod() - inside)
        return (overlap * outputs[..., 4 + self.index]).amax(1)

    @property
    def classes(self) -> tuple[int, ...]:
        return (self.index,)

    def describe(self, labels: Labels) -> str:
        assert self.box is not None  # noqa: S101  # settled
        return f"{labels.short(self.index)} at {', '.join(f'{side:.3g}' for side in self.box)}"


@dataclass(frozen=True)
class Neuron(Target):
    """What one unit of a layer gives: `index` in its activation, without the batch. Fewer numbers than axes, such as a
    channel alone, are the mean of all units there.

    Example:
        >>> import torch, pellucid as pl
        >>> net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
        >>> a = pl.SimpleGradient()(pl.TorchModel(net), torch.ones(1, 3), target=pl.Neuron("0", (2,)))
        >>> torch.equal(a.scores[0], net[0].weight[2])
        True
    """

    layer: str
    index: tuple[int, ...]
    kinds: ClassVar[tuple[OutputKind, ...]] = tuple(OutputKind)

    def __post_init__(self) -> None:
        object.__setattr__(self, "index", tuple(self.index) if isinstance(self.index, list | tuple) else (self.index,))
        if not isinstance(self.layer, str) or not self.index:
            raise ArgumentError(f"A neuron is a layer's name and an index in it. Got {self.layer!r}, {self.index!r}.")
        for number in self.index:
            check_count("index", number, least=0)

    @property
    def reads(self) -> str:
        return self.layer

    def score(self, outputs: Float[Tensor, "b *k"], kind: OutputKind) -> Float[Tensor, " b"]:
        shape = tuple(outputs.shape[1:])
        if len(self.index) > len(shape) or any(i >= n for i, n in zip(self.index, shape, strict=False)):
            raise TargetError(f"The layer {self.layer!r} gives {shape} for each input. Got the index {self.index}.")
        unit = outputs
        for number in self.index:
            unit = unit[:, number]
        return unit.reshape(len(outputs), -1).mean(1)

    @property
    def classes(self) -> tuple[int, ...]:
        return ()

    def describe(self, labels: Labels) -> str:
        return f"unit {', '.join(map(str, self.index))} of {self.layer}"


@dataclass(frozen=True)
class Targets:
    """One settled target for each row of a batch, and the kind of outputs that they read."""

    each: tuple[Target, ...]
    kind: OutputKind

    def __len__(self) -> int:
        return len(self.each)

    def __getitem__(self, rows: slice) -> "Targets":
        return Targets(self.each[rows], self.kind)

    def __iter__(self) -> Iterator[Target]:
        return iter(self.each)

    def chosen(self, rows: Sequence[int]) -> "Targets":
        """The targets of some of the rows."""
        return Targets(tuple(self.each[row] for row in rows), self.kind)

    def repeat(self, times: int) -> "Targets":
        """Each row's target `times` times in a row, as copies of one input lie side by side in a batch."""
        return Targets(tuple(target for target in self.each for _ in range(times)), self.kind)

    @property
    def layers(self) -> tuple[str, ...]:
        """The layers that are read instead of the outputs."""
        return tuple(dict.fromkeys(target.reads for target in self.each if target.reads is not None))

    def score(
        self, outputs: Float[Tensor, "b *k"], layers: Mapping[str, Float[Tensor, "b *activation"]] | None = None
    ) -> Float[Tensor, " b"]:
        """Each row's number, of its outputs or of what its layer gave. Rows that share a target are scored together."""

        def read(target: Target, rows: Sequence[int] | slice) -> Tensor:
            source = outputs if target.reads is None or layers is None else layers[target.reads]
            return target.score(source[rows], self.kind).to(outputs.dtype)

        rows: dict[Target, list[int]] = {}
        for row, target in enumerate(self.each):
            rows.setdefault(target, []).append(row)
        if len(rows) == 1:
            return read(self.each[0], slice(None))
        parts = [read(target, members) for target, members in rows.items()]
        order = torch.tensor([row for members in rows.values() for row in members], device=outputs.device)
        return torch.cat(parts)[order.argsort()]


TargetSpec = None | int | str | Target | Sequence["int | str | Target | None"]
"""What a caller may write: None (the top class), an index, a label, a Target, or one of these for each input."""


def settle(spec: Any, prediction: Prediction) -> Targets:
    """The target of each input, decided on the clean prediction.

    Raises:
        TargetError: an index out of range, an unknown or ambiguous label, a list of another length than the batch.
    """
    if isinstance(spec, Tensor | np.ndarray):
        spec = spec.tolist()
    if isinstance(spec, list | tuple):
        specs = list(spec)
        if len(specs) != len(prediction):
            raise TargetError(
                f"Expected one target for each of {len(prediction)} inputs, but got {spec!r}. "
                "A single target for all inputs is written without a list."
            )
    else:
        specs = [spec] * len(prediction)
    return Targets(tuple(_settle_one(one, prediction[i]) for i, one in enumerate(specs)), prediction.kind)


def _settle_one(spec: object, prediction: Prediction) -> Target:
    count = prediction.kind.classes(prediction.outputs)
    target: Target
    if spec is None:
        if prediction.kind is OutputKind.REGRESSION and count > 1:
            raise TargetError(f"A regression with {count} outputs has no top class. Name one: target=0 to {count - 1}.")
        target = _of_class(prediction.top(1)[0][2] if prediction.outputs.ndim > 2 else _top(prediction), prediction)
    elif isinstance(spec, Target):
        target = spec
    elif isinstance(spec, str):
        target = _of_class(prediction.labels.find(spec), prediction)
    elif isinstance(spec, int | np.integer) and not isinstance(spec, bool):
        spec = int(spec)
        # Negative indices are refused: -1 in a table of labels is far more often "unknown" than "the last class".
        if not 0 <= spec < count:
            raise TargetError(f"The model has {count} outputs, 0 to {count - 1}. Got target {spec}.")
        target = _of_class(spec, prediction)
    else:
        raise TargetError(f"A target is None, an index, a label or a pellucid Target. Got {type(spec).__name__}.")
    if max(target.classes, default=0) >= count:
        raise TargetError(f"The model has {count} outputs, 0 to {count - 1}. Got {target!r}.")
    if prediction.kind not in target.kinds:
        fitting = {OutputKind.SEGMENTATION: "RegionMean(index)", OutputKind.DETECTION: "BoxScore(index)"}
        raise TargetError(
            f"{type(target).__name__} reads {' or '.join(target.kinds)}, but the model's outputs are a "
            f"{prediction.kind}. Take {fitting.get(prediction.kind, 'ClassScore(index)')}."
        )
    return target.settled(prediction.outputs[0], prediction.kind)


def _of_class(index: int, prediction: Prediction) -> Target:
    match prediction.kind:
        case OutputKind.SEGMENTATION:
            return RegionMean(index)
        case OutputKind.DETECTION:
            return BoxScore(index)
    return ClassScore(index)


def _top(prediction: Prediction) -> int:
    return int(prediction.outputs[0].argmax())


def _refuse_regression(target: Target, kind: OutputKind) -> None:
    if kind is OutputKind.REGRESSION:
        raise TargetError(
            f"{target!r} needs class probabilities, but the model is a regression. Write target=0 for its output, or "
            'TorchModel(..., output="logits") if its outputs are logits.'
        )

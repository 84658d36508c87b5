"""What is explained: one number per input, made of the model's outputs. Settled once, on the clean input."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from pellucid.core.checks import check_count
from pellucid.core.label import Labels
from pellucid.core.prediction import OutputKind, Prediction
from pellucid.core.recipe import Value
from pellucid.errors import TargetError

__all__ = ["ClassScore", "LogProb", "Margin", "Probability", "Target", "TargetSpec", "Targets", "settle"]


class Target(ABC, Value):
    """A scalar function of the outputs of one input."""

    @abstractmethod
    def score(self, outputs: Float[Tensor, "b k"], kind: OutputKind) -> Float[Tensor, " b"]:
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

    def score(self, outputs: Float[Tensor, "b k"], kind: OutputKind) -> Float[Tensor, " b"]:
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

    def score(self, outputs: Float[Tensor, "b k"], kind: OutputKind) -> Float[Tensor, " b"]:
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

    def score(self, outputs: Float[Tensor, "b k"], kind: OutputKind) -> Float[Tensor, " b"]:
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

    def score(self, outputs: Float[Tensor, "b k"], kind: OutputKind) -> Float[Tensor, " b"]:
        _refuse_regression(self, kind)
        return (torch.softmax(outputs, 1) if kind is OutputKind.LOGITS else outputs)[:, self.index]

    @property
    def classes(self) -> tuple[int, ...]:
        return (self.index,)

    def describe(self, labels: Labels) -> str:
        return f"probability of {labels.short(self.index)}"


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

    def score(self, outputs: Float[Tensor, "b k"]) -> Float[Tensor, " b"]:
        """Each row's number. Rows that share a target are scored together."""
        rows: dict[Target, list[int]] = {}
        for row, target in enumerate(self.each):
            rows.setdefault(target, []).append(row)
        if len(rows) == 1:
            return self.each[0].score(outputs, self.kind)
        parts = [target.score(outputs[members], self.kind) for target, members in rows.items()]
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
    count = prediction.outputs.shape[1]
    if spec is None:
        if prediction.kind is OutputKind.REGRESSION and count > 1:
            raise TargetError(f"A regression with {count} outputs has no top class. Name one: target=0 to {count - 1}.")
        target: Target = ClassScore(int(prediction.outputs[0].argmax()))
    elif isinstance(spec, Target):
        target = spec
    elif isinstance(spec, str):
        target = ClassScore(prediction.labels.find(spec))
    elif isinstance(spec, int | np.integer) and not isinstance(spec, bool):
        spec = int(spec)
        # Negative indices are refused: -1 in a table of labels is far more often "unknown" than "the last class".
        if not 0 <= spec < count:
            raise TargetError(f"The model has {count} outputs, 0 to {count - 1}. Got target {spec}.")
        target = ClassScore(spec)
    else:
        raise TargetError(f"A target is None, an index, a label or a pellucid Target. Got {type(spec).__name__}.")
    if max(target.classes) >= count:
        raise TargetError(f"The model has {count} outputs, 0 to {count - 1}. Got {target!r}.")
    return target


def _refuse_regression(target: Target, kind: OutputKind) -> None:
    if kind is OutputKind.REGRESSION:
        raise TargetError(
            f"{target!r} needs class probabilities, but the model is a regression. Write target=0 for its output, or "
            'TorchModel(..., output="logits") if its outputs are logits.'
        )

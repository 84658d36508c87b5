"""What a model said about its inputs."""

import math
from dataclasses import dataclass
from enum import StrEnum

import torch
from jaxtyping import Float
from torch import Tensor

from pellucid.core.label import Labels
from pellucid.errors import ArgumentError

__all__ = ["OutputKind", "Prediction", "recognise"]

_SUM_TOLERANCE = 1e-3  # probabilities may have been rounded on their way


class OutputKind(StrEnum):
    """What the model's outputs are: (B, K), of places (B, K, ...), or boxes (B, N, 4 + K).

    The K outputs of a segmentation are class scores of each place; a detection has N candidates, each a box (left, top,
    right, bottom) and K class scores.
    """

    LOGITS = "logits"
    PROBABILITIES = "probabilities"
    REGRESSION = "regression"
    SEGMENTATION = "segmentation"
    DETECTION = "detection"

    def classes(self, outputs: Tensor) -> int:
        """How many classes the outputs have."""
        return int(outputs.shape[2] - 4 if self is OutputKind.DETECTION else outputs.shape[1])


def recognise(outputs: Float[Tensor, "b *k"]) -> OutputKind:
    """The kind that the values themselves show: rows that sum to one without a negative are probabilities, a single
    output is a regression, those of places a segmentation, anything else logits.
    """
    if outputs.ndim > 2:
        return OutputKind.SEGMENTATION
    if outputs.shape[1] == 1:
        return OutputKind.REGRESSION
    rows = outputs.double()[outputs.isfinite().all(1)]  # a broken row says nothing about the others
    tolerance = max(_SUM_TOLERANCE, 4 * torch.finfo(outputs.dtype).eps)
    if len(rows) and bool((rows >= 0).all()) and bool(((rows.sum(1) - 1).abs() < tolerance).all()):
        return OutputKind.PROBABILITIES
    return OutputKind.LOGITS


@dataclass(frozen=True, eq=False)
class Prediction:
    """The model's outputs (B, K) on clean inputs, what kind they are, and the names of the K classes.

    Example:
        >>> import torch, pellucid as pl
        >>> model = pl.TorchModel(torch.nn.Identity(), labels=["cat", "dog"], output="logits")
        >>> [(label, round(p, 3), index) for label, p, index in model.predict(torch.tensor([[0.0, 1.0]])).top(2)]
        [('dog', 0.731, 1), ('cat', 0.269, 0)]
    """

    outputs: Tensor
    kind: OutputKind
    labels: Labels

    def __len__(self) -> int:
        return len(self.outputs)

    def __getitem__(self, index: int) -> "Prediction":
        if not -len(self) <= index < len(self):
            raise IndexError(f"Prediction {index} of {len(self)}.")
        return Prediction(self.outputs[index % len(self)][None], self.kind, self.labels)

    @property
    def probabilities(self) -> Tensor:
        """(B, K): softmax of logits, probabilities as they are; of a segmentation the same at each place.

        Raises:
            ArgumentError: a regression and a detection have none.
        """
        if self.kind in (OutputKind.REGRESSION, OutputKind.DETECTION):
            raise ArgumentError(f"A {self.kind} has no probabilities. Read `outputs` instead.")
        return self.outputs if self.kind is OutputKind.PROBABILITIES else torch.softmax(self.outputs, 1)

    def top(self, k: int = 5) -> list[tuple[str, float, int]]:
        """The k likeliest classes of one input as (label, probability, index); for a regression (label, value, index),
        for a segmentation (label, share of the places, index), for a detection (label, highest score, index).

        Raises:
            ArgumentError: several inputs; take `prediction[i].top(k)`.
        """
        if len(self) != 1:
            raise ArgumentError(f"`top` is for one input and this holds {len(self)}. Write prediction[i].top({k}).")
        outputs = self.outputs
        match self.kind:
            case OutputKind.REGRESSION:
                values = outputs[0]
            case OutputKind.SEGMENTATION:
                places = outputs[0].flatten(1).argmax(0)
                values = torch.bincount(places, minlength=outputs.shape[1]) / max(math.prod(outputs.shape[2:]), 1)
            case OutputKind.DETECTION:
                values = outputs[0, :, 4:].amax(0)
            case _:
                values = self.probabilities[0]
        best = torch.sort(values, descending=True, stable=True).indices[:k].tolist()
        return [(self.labels.name(i), float(values[i]), i) for i in best]

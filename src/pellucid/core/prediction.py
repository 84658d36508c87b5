"""What a model said about its inputs."""

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
    """What the model's K outputs are."""

    LOGITS = "logits"
    PROBABILITIES = "probabilities"
    REGRESSION = "regression"


def recognise(outputs: Float[Tensor, "b k"]) -> OutputKind:
    """The kind that the values themselves show: rows that sum to one without a negative are probabilities, a single
    output is a regression, anything else logits.
    """
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
        """(B, K): softmax of logits, probabilities as they are.

        Raises:
            ArgumentError: a regression has none.
        """
        if self.kind is OutputKind.REGRESSION:
            raise ArgumentError("A regression has no probabilities. Read `outputs` instead.")
        return torch.softmax(self.outputs, 1) if self.kind is OutputKind.LOGITS else self.outputs

    def top(self, k: int = 5) -> list[tuple[str, float, int]]:
        """The k likeliest classes of one input as (label, probability, index); for a regression (label, value, index).

        Raises:
            ArgumentError: several inputs; take `prediction[i].top(k)`.
        """
        if len(self) != 1:
            raise ArgumentError(f"`top` is for one input and this holds {len(self)}. Write prediction[i].top({k}).")
        values = (self.outputs if self.kind is OutputKind.REGRESSION else self.probabilities)[0]
        best = torch.sort(values, descending=True, stable=True).indices[:k].tolist()
        return [(self.labels.name(i), float(values[i]), i) for i in best]

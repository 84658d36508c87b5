"""A prediction function as a model: nothing is known of it but its outputs."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from pellucid.core.card import Cost, Needs
from pellucid.core.input import Preprocess
from pellucid.core.model import UNKNOWN, Model
from pellucid.core.output import check_outputs
from pellucid.errors import ArgumentError, ModelError

__all__ = ["FunctionModel"]


class FunctionModel(Model):
    """Any function from inputs (B, *features) to outputs (B, K) or (B,), as NumPy arrays or tensors; of several inputs
    one argument for each.

    `takes` says which of the two the function is given. It is called with at most `micro_batch` rows at once.

    Raises:
        ArgumentError: not a function, or a setting that does not exist.

    Example:
        >>> import torch, pellucid as pl
        >>> model = pl.FunctionModel(lambda rows: rows.sum(1), output="regression")
        >>> model.predict(torch.ones(2, 3))[0].top(1)
        [('class 0', 3.0, 0)]
    """

    offers = Needs.SCORES
    fails_by_row = True

    def __init__(
        self,
        function: Callable[[Any], Any],
        *,
        takes: Literal["numpy", "torch"] = "numpy",
        preprocess: Preprocess | None = None,
        labels: Sequence[str] | None = None,
        output: Literal["logits", "probabilities", "regression", "segmentation", "detection"] | None = None,
        micro_batch: int | None = None,
        name: str | None = None,
    ) -> None:
        super().__init__(preprocess=preprocess, labels=labels, output=output, micro_batch=micro_batch)
        if not callable(function):
            raise ArgumentError(f"FunctionModel takes a function of a batch of inputs. Got {type(function).__name__}.")
        if takes not in ("numpy", "torch"):
            raise ArgumentError(f"`takes` is 'numpy' or 'torch'. Got {takes!r}.")
        self.function = function
        self.takes = takes
        self.name = name or str(getattr(function, "__name__", type(function).__name__))

    def place(self, x: Tensor) -> Tensor:
        return x.detach().cpu()

    def outputs(self, x: Float[Tensor, "b *features"]) -> Float[Tensor, "b *k"]:
        return torch.cat([self._call(part) for part in torch.split(x, self.rows(x))])

    def _call(self, x: Tensor) -> Tensor:
        self.passes += Cost(forward=len(x))
        # The function may write into what it gets.
        parts = [x] if self.packing is None else self.packing.given(x)
        given: list[Any] = [part.clone() if self.takes == "torch" else _as_numpy(part) for part in parts]
        try:
            with torch.no_grad():
                if self.packing is not None and self.packing.by_name:
                    named: dict[str, Any] = dict(zip(self.packing.names, given, strict=True))
                    result = self.function(**named)  # type: ignore[call-arg]  # what it takes is the user's matter
                else:
                    result = self.function(*given)
            outputs = _as_tensor(result).to(x.dtype)
        except Exception as error:
            raise ModelError(f"{self.name} failed on a batch of shape {tuple(x.shape)}: {error}") from error
        outputs = outputs[:, None] if outputs.ndim == 1 else outputs
        check_outputs(outputs, len(x), self.output, self.name)
        return outputs

    def fingerprint(self) -> str:
        return UNKNOWN


def _as_tensor(result: Any) -> Tensor:
    """What a function returned, as a tensor of its own: arrays may be read-only, or run backwards."""
    if isinstance(result, list | tuple) and result and all(isinstance(row, Tensor) for row in result):
        result = torch.stack(list(result))
    found = result.detach().cpu() if isinstance(result, Tensor) else torch.from_numpy(np.array(result, order="C"))
    if found.is_complex():
        raise TypeError(f"expected real numbers, but got {found.dtype}")
    return found


def _as_numpy(x: Tensor) -> np.ndarray:
    """A copy for the function to keep or change; NumPy has no bfloat16."""
    return x.to(torch.float32 if x.dtype == torch.bfloat16 else x.dtype).numpy().copy()

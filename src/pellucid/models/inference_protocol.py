"""What a prediction endpoint is asked, and what it answers, in two formats of JSON.

Plain: `{"inputs": [row, ...]}` is answered by `{"outputs": [row, ...]}`, rows as nested lists. The Open Inference
Protocol, version 2: named tensors with a shape, a type and their numbers in row-major order. JSON has no NaN, so a null
among the outputs is one.
"""

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pellucid.errors import ModelError

__all__ = ["V2", "Plain", "Protocol", "parsed"]

_DATATYPES = {
    torch.float16: "FP16",
    torch.float32: "FP32",
    torch.float64: "FP64",
    torch.int64: "INT64",
    torch.int32: "INT32",
    torch.uint8: "UINT8",
    torch.bool: "BOOL",
}
_FLOATS = ("FP16", "FP32", "FP64")
_SHOWN = 60  # characters of what came instead


class Protocol(ABC):
    """One format: what is sent for rows, given by the names of the endpoint's inputs, and what a reply says."""

    @abstractmethod
    def request(self, parts: Mapping[str, Tensor], datatype: str | None = None) -> dict[str, Any]:
        """The body for these inputs (B, ...); `datatype` is that of a single one, where the endpoint has said it."""

    @abstractmethod
    def outputs(self, reply: Any) -> np.ndarray:
        """The outputs in a parsed reply, float64, still to be checked for their rows.

        Raises:
            ModelError: the reply has another form.
        """


@dataclass(frozen=True)
class Plain(Protocol):
    """`{"inputs": [[...], ...]}` and `{"outputs": [[...], ...]}`."""

    def request(self, parts: Mapping[str, Tensor], datatype: str | None = None) -> dict[str, Any]:
        [rows] = parts.values()
        return {"inputs": rows.tolist()}

    def outputs(self, reply: Any) -> np.ndarray:
        if not isinstance(reply, dict) or "outputs" not in reply:
            raise ModelError(f'Expected a reply {{"outputs": [[...], ...]}}, but got {_shown(reply)}.')
        return _numbers(reply["outputs"])


@dataclass(frozen=True)
class V2(Protocol):
    """Tensors by name; `select` is the name or the index of the outputs where the endpoint has several."""

    select: str | int | None = None

    def request(self, parts: Mapping[str, Tensor], datatype: str | None = None) -> dict[str, Any]:
        inputs = [
            {
                "name": name,
                "shape": list(part.shape),
                "datatype": datatype or _DATATYPES.get(part.dtype, "FP32"),
                "data": part.flatten().tolist(),
            }
            for name, part in parts.items()
        ]
        wanted = {"outputs": [{"name": self.select}]} if isinstance(self.select, str) else {}
        return {"inputs": inputs, **wanted}

    def outputs(self, reply: Any) -> np.ndarray:
        found = reply.get("outputs") if isinstance(reply, dict) else None
        if not isinstance(found, list) or not all(isinstance(one, dict) and "name" in one for one in found):
            raise ModelError(f'Expected a reply {{"outputs": [{{"name": ...}}, ...]}}, but got {_shown(reply)}.')
        chosen = self._chosen(found)
        shape, data = chosen.get("shape"), chosen.get("data")
        if not isinstance(shape, list) or not all(type(size) is int and size >= 0 for size in shape):
            raise ModelError(f"Expected the shape of output {chosen['name']!r}, but got {_shown(shape)}.")
        numbers = _numbers(data).reshape(-1)
        if numbers.size != math.prod(shape):
            raise ModelError(f"Expected {shape} numbers of output {chosen['name']!r}, but got {numbers.size}.")
        return numbers.reshape(shape)

    def _chosen(self, found: Sequence[dict[str, Any]]) -> dict[str, Any]:
        by_name = {one["name"]: one for one in found}
        if isinstance(self.select, str) and self.select in by_name:
            return by_name[self.select]
        if isinstance(self.select, int) and 0 <= self.select < len(found):
            return found[self.select]
        if self.select is None and len(found) == 1:
            return found[0]
        got = "" if self.select is None else f" Got select={self.select!r}."
        raise ModelError(f"Expected one output; say which of {', '.join(map(repr, by_name))}: select=...{got}")

    @staticmethod
    def only_input(metadata: Any) -> tuple[str, str]:
        """Name and type of the endpoint's one input, as it describes itself.

        Raises:
            ModelError: it has several, or none of floating point.
        """
        inputs = metadata.get("inputs") if isinstance(metadata, dict) else None
        if not isinstance(inputs, list) or not all(isinstance(one, dict) and "name" in one for one in inputs):
            raise ModelError(
                f"Expected a description with its inputs, but got {_shown(metadata)}. Give input_name=...."
            )
        if len(inputs) != 1:
            names = ", ".join(repr(one["name"]) for one in inputs)
            raise ModelError(f"It has {len(inputs)} inputs ({names}). Pass a dict of tensors by these names.")
        name, datatype = str(inputs[0]["name"]), inputs[0].get("datatype")
        if datatype not in _FLOATS:
            raise ModelError(
                f"Its input {name!r} takes {_shown(datatype)}; only {', '.join(_FLOATS)} can be explained."
            )
        return name, datatype


def parsed(content: bytes) -> Any:
    """The JSON in a reply.

    Raises:
        ModelError: it is none.
    """
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ModelError(f"Expected JSON, but got {_shown(content.decode(errors='replace'))} ({error}).") from error


def _numbers(data: Any) -> np.ndarray:
    try:
        found = np.array(data)
        if found.dtype == object and all(one is None or type(one) in (int, float) for one in found.flat):
            found = found.astype(np.float64)  # null becomes NaN
    except (ValueError, OverflowError) as error:
        raise ModelError("Expected rows of one length, but got lists of several.") from error
    if found.dtype.kind not in "iuf":
        raise ModelError(f"Expected numbers, but got {_shown(data)}.")
    return found.astype(np.float64)


def _shown(value: Any) -> str:
    text = value if isinstance(value, str) else repr(value)
    return repr(text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…")

"""What a prediction endpoint is asked, and what it answers, in two formats of JSON.

Plain: `{"inputs": [row, ...]}` is answered by `{"outputs": [row, ...]}`, rows as nested lists. The Open Inference
Protocol, version 2: named tensors with a shape, a type and their numbers in row-major order. JSON has no NaN, so a null
among the outputs is one.
"""

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

import numpy as np
import torch
from torch import Tensor

from pellucid.errors import ModelError
from pellucid.models.told import in_short, listed

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
_READ = 10_000  # and of what is looked through for that
_MOST_AXES = 16


@dataclass(frozen=True, kw_only=True)
class Protocol(ABC):
    """One format: what is sent for rows, given by the names of the endpoint's inputs, and what a reply says. `public`
    takes from a text what must not be shown of it.
    """

    public: Callable[[str], str] = str

    @abstractmethod
    def request(self, parts: Mapping[str, Tensor], datatype: str | None = None) -> dict[str, Any]:
        """The body for these inputs (B, ...); `datatype` is that of a single one, where the endpoint has said it."""

    @abstractmethod
    def outputs(self, reply: Any) -> np.ndarray:
        """The outputs in a parsed reply, float64, still to be checked for their rows.

        Raises:
            ModelError: the reply has another form.
        """

    def numbers(self, data: Any) -> np.ndarray:
        """Nested lists as an array of float64."""
        if _depth(data) > _MOST_AXES:
            raise ModelError(f"Expected rows of numbers, but got lists in lists, {_depth(data)} deep.")
        try:
            found = np.array(data)
            if found.dtype == object and all(one is None or type(one) in (int, float) for one in found.flat):
                found = found.astype(np.float64)  # null becomes NaN
        except OverflowError as error:
            raise ModelError("Expected numbers that a computer holds, but one is over 1e308.") from error
        except ValueError as error:
            raise ModelError("Expected rows of one length, but got lists of several.") from error
        if found.dtype.kind not in "iuf":
            raise ModelError(f"Expected numbers, but got {self.shown(data)}.")
        return found.astype(np.float64)

    def shown(self, value: Any) -> str:
        """What came instead, in short."""
        return _shown(value, self.public)


@dataclass(frozen=True, kw_only=True)
class Plain(Protocol):
    """`{"inputs": [[...], ...]}` and `{"outputs": [[...], ...]}`."""

    def request(self, parts: Mapping[str, Tensor], datatype: str | None = None) -> dict[str, Any]:
        [rows] = parts.values()
        return {"inputs": rows.tolist()}

    def outputs(self, reply: Any) -> np.ndarray:
        if not isinstance(reply, dict) or "outputs" not in reply:
            raise ModelError(f'Expected a reply {{"outputs": [[...], ...]}}, but got {self.shown(reply)}.')
        return self.numbers(reply["outputs"])


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
        if not _are_named(found):
            raise ModelError(f'Expected a reply {{"outputs": [{{"name": ...}}, ...]}}, but got {self.shown(reply)}.')
        chosen = self._chosen(found)
        name, shape = self.shown(chosen["name"]), chosen.get("shape")
        if not isinstance(shape, list) or not all(type(size) is int and size >= 0 for size in shape):
            raise ModelError(f"Expected the shape of output {name}, but got {self.shown(shape)}.")
        if len(shape) > _MOST_AXES or 0 in shape:
            raise ModelError(
                f"Expected outputs {name} of {_MOST_AXES} axes at most and none of them empty, but got the shape "
                f"{self.shown(shape)}."
            )
        numbers = self.numbers(chosen.get("data")).reshape(-1)
        if numbers.size != math.prod(shape):
            raise ModelError(
                f"Expected {in_short(str(shape), _SHOWN)} numbers of output {name}, but got {numbers.size}."
            )
        return numbers.reshape(shape)

    def _chosen(self, found: Sequence[dict[str, Any]]) -> dict[str, Any]:
        by_name = {one["name"]: one for one in found}
        if isinstance(self.select, str) and self.select in by_name:
            return by_name[self.select]
        if type(self.select) is int and 0 <= self.select < len(found):
            return found[self.select]
        if self.select is None and len(found) == 1:
            return found[0]
        got = "" if self.select is None else f" Got select={self.select!r}."
        raise ModelError(f"Expected one output; say which of {self._names(found)}: select=...{got}")

    def only_input(self, metadata: Any) -> tuple[str, str]:
        """Name and type of the endpoint's one input, as it describes itself.

        Raises:
            ModelError: it has several, or none of floating point.
        """
        inputs = metadata.get("inputs") if isinstance(metadata, dict) else None
        if not _are_named(inputs):
            raise ModelError(
                f"Expected a description with its inputs, but got {self.shown(metadata)}. Give input_name=...."
            )
        if len(inputs) != 1:
            raise ModelError(
                f"It has {len(inputs)} inputs ({self._names(inputs)}). Pass a dict of tensors by these names."
            )
        name, datatype = inputs[0]["name"], inputs[0].get("datatype")
        if datatype not in _FLOATS:
            raise ModelError(
                f"Its input {self.shown(name)} takes {self.shown(datatype)}; only {', '.join(_FLOATS)} can be "
                "explained."
            )
        return name, datatype

    def _names(self, found: Sequence[dict[str, Any]]) -> str:
        return listed(self.public(one["name"][:_READ]) for one in found)


def parsed(content: bytes, public: Callable[[str], str] = str) -> Any:
    """The JSON in a reply; `public` as in Protocol.

    Raises:
        ModelError: it is none, or one of lists too deep or numbers too long to be read.
    """
    try:
        return json.loads(content)
    except RecursionError:
        what, why = "Expected lists that are not so deep", ""
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        what, why = "Expected JSON", f" ({in_short(str(error), 2 * _SHOWN)})"
    except ValueError:  # what Python says of whole numbers of thousands of digits
        what, why = "Expected numbers that are not so long", ""
    raise ModelError(f"{what}, but got {_shown(content[:_READ].decode(errors='replace'), public)}{why}.")


def _are_named(found: Any) -> TypeGuard[list[dict[str, Any]]]:
    """Whether these are tensors, each with a name."""
    return isinstance(found, list) and all(isinstance(one, dict) and isinstance(one.get("name"), str) for one in found)


def _depth(data: Any) -> int:
    """How deep the lists are, where they begin."""
    depth = 0
    while isinstance(data, list) and data:
        data, depth = data[0], depth + 1
    return depth


def _shown(value: Any, public: Callable[[str], str]) -> str:
    """What came instead, masked before it is cut."""
    text = public((value if isinstance(value, str) else repr(value))[:_READ])
    return repr(in_short(text, _SHOWN))

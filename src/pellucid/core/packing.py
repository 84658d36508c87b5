"""Several tensors as one row of features, so that every method explains networks of several inputs without knowing it.

The parts of an input lie one after the other in its row; the network gets them back in their shapes. Parts that are not
floating point (indices, masks) are held: no gradient belongs to them, and no noise is added to them. Where all are, as
the tokens of a text, there is nothing to explain but at layers.
"""

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from pellucid.core.recipe import Value
from pellucid.errors import ArgumentError

__all__ = ["Packing", "pack", "spread"]

_LARGEST = 2**24
"""Whole numbers up to this size are exact in float32."""


@dataclass(frozen=True)
class Packing(Value):
    """The names, shapes and types of the parts; `by_name` says whether the network takes them by name or by place."""

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    types: tuple[str, ...]
    by_name: bool = False

    @property
    def held(self) -> tuple[bool, ...]:
        """Which parts are given to the network as they are, and not explained."""
        return tuple(not _type(name).is_floating_point for name in self.types)

    @property
    def sizes(self) -> tuple[int, ...]:
        """How many features each part has."""
        return tuple(math.prod(shape) for shape in self.shapes)

    @property
    def drawn(self) -> int:
        """Which of the explained parts most looks like a picture; of all parts, if none is explained."""
        explained = [i for i, held in enumerate(self.held) if not held] or range(len(self.held))
        return max(explained, key=lambda i: (len(self.shapes[i]) == 3, len(self.shapes[i])))

    def parts(self, rows: Float[Tensor, "b features"]) -> dict[str, Tensor]:
        """The parts by name, (B, *shape) each, in the type of the rows."""
        cut = torch.split(rows, list(self.sizes), 1)
        return {
            name: part.reshape(len(rows), *shape)
            for name, shape, part in zip(self.names, self.shapes, cut, strict=True)
        }

    def explained(self, rows: Float[Tensor, "b features"]) -> dict[str, Tensor]:
        """The parts that are not held."""
        return {n: part for (n, part), held in zip(self.parts(rows).items(), self.held, strict=True) if not held}

    def mask(self, like: Tensor) -> Float[Tensor, " features"]:
        """1 at the features that are explained, 0 at those that are held."""
        flags = [torch.full((size,), not held) for size, held in zip(self.sizes, self.held, strict=True)]
        return torch.cat(flags).to(like)

    def given(self, rows: Tensor, dtype: torch.dtype | None = None) -> list[Tensor]:
        """The parts as the network takes them: held ones in their own type, the others in `dtype`."""
        return [
            part.round().to(_type(name)) if held else part.to(dtype or part.dtype)
            for part, name, held in zip(self.parts(rows).values(), self.types, self.held, strict=True)
        ]

    def packed(self, parts: Sequence[Tensor]) -> Float[Tensor, "b features"]:
        """One row for each input."""
        dtypes = [part.dtype if part.is_floating_point() else torch.float32 for part in parts]
        dtype = functools.reduce(torch.promote_types, dtypes)
        return torch.cat([part.reshape(len(part), math.prod(part.shape[1:])).to(dtype) for part in parts], 1)


def pack(parts: Mapping[str, Tensor] | Sequence[Tensor]) -> tuple[Tensor, Packing]:
    """The rows of a dict or tuple of tensors (B, ...), and how to take them apart.

    Raises:
        ArgumentError: not tensors of as many rows, or whole numbers that float32 has not.
    """
    by_name = isinstance(parts, Mapping)
    names = tuple(map(str, parts)) if isinstance(parts, Mapping) else tuple(map(str, range(len(parts))))
    tensors: list[Any] = list(parts.values()) if isinstance(parts, Mapping) else list(parts)
    if not tensors or not all(isinstance(part, Tensor) and part.ndim > 0 for part in tensors):
        raise ArgumentError(
            f"Several inputs are tensors (B, ...), in a dict or tuple. Got {[type(part).__name__ for part in tensors]}."
        )
    if len({len(part) for part in tensors}) != 1 or len(tensors[0]) == 0:
        raise ArgumentError(
            f"Expected as many rows, one or more, in each part, but got {[len(part) for part in tensors]}."
        )
    if any(not part.is_floating_point() and part.numel() and int(part.abs().max()) > _LARGEST for part in tensors
           if part.dtype != torch.bool):  # fmt: skip
        raise ArgumentError(f"Whole numbers among the inputs are {_LARGEST} at most.")
    packing = Packing(
        names=names,
        shapes=tuple(tuple(part.shape[1:]) for part in tensors),
        types=tuple(str(part.dtype).removeprefix("torch.") for part in tensors),
        by_name=by_name,
    )
    return packing.packed(tensors), packing


def spread(x: Tensor, packing: Packing | None) -> Float[Tensor, "b *features"]:
    """The range (max - min) of each input over all its features, (B, 1, ...); of packed inputs, each part has its own,
    zero where it is held, (B, features).
    """
    if packing is None:
        axes = tuple(range(1, x.ndim))
        return x.amax(axes, keepdim=True) - x.amin(axes, keepdim=True)
    ranges = []
    for part, held in zip(torch.split(x, list(packing.sizes), 1), packing.held, strict=True):
        own = (part.amax(1, keepdim=True) - part.amin(1, keepdim=True)) * (not held) if part.shape[1] else part
        ranges.append(own.expand_as(part))
    return torch.cat(ranges, 1)


def _type(name: str) -> torch.dtype:
    found = getattr(torch, name, None)
    if not isinstance(found, torch.dtype):
        raise ArgumentError(f"Expected the name of a tensor's type, but got {name!r}.")
    return found

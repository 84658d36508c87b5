"""Where in a layer's activation its channels and its cells are, and what they are cells of.

Convolutions give (B, K, h, w), some vision transformers (B, h, w, K) or tokens (B, n, K) with class tokens before them.
Which of them it is shows in the proportions of the input; for the shape of a network's inputs it is always the same.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["Grid", "grid_of"]

_MOST_PREFIX = 8
"""Class, distillation and register tokens."""

_CUT_OFF = 0.1
"""How much convolutions without padding may change a picture's proportions."""


@dataclass(frozen=True)
class Grid:
    """How a layer's activation is laid out: `cells` along each axis, and the tokens of no place before them."""

    order: Literal["channels first", "channels last", "tokens"]
    cells: tuple[int, ...]
    prefix: int = 0

    @property
    def channel_axis(self) -> int:
        """The axis of the channels in the activation, with its batch."""
        return 1 if self.order == "channels first" else -1

    def maps(self, activation: Float[Tensor, "b *activation"]) -> Float[Tensor, "b k *cells"]:
        """The activation with its channels first, as a view."""
        if self.order == "channels first":
            return activation
        if self.order == "tokens":
            activation = activation[:, self.prefix :].unflatten(1, self.cells)
        return activation.movedim(-1, 1)

    def placed(self, maps: Float[Tensor, "b k *cells"], like: Float[Tensor, "b *activation"]) -> Tensor:
        """Maps put where `maps` found them, the rest as in `like`."""
        if self.order == "channels first":
            return maps
        last = maps.movedim(1, -1)
        if self.order == "channels last":
            return last
        return torch.cat([like[:, : self.prefix], last.flatten(1, -2)], 1)

    def __str__(self) -> str:
        words = f"{'x'.join(map(str, self.cells))} cells, {self.order}"
        return f"{words} after {self.prefix}" if self.prefix else words


def grid_of(activation: tuple[int, ...], features: tuple[int, ...]) -> Grid | None:
    """The grid of an activation of this shape (with its batch), of inputs of that shape (without); None if there is no
    grid of more than one cell.
    """
    found = _grid_of(activation, features)
    return found if found is not None and math.prod(found.cells) > 1 else None


def _grid_of(activation: tuple[int, ...], features: tuple[int, ...]) -> Grid | None:
    rank = len(activation)
    if len(features) == 3:  # a picture, or what is drawn as one
        high, wide = features[1:]
        if rank == 4:
            _, first, second, third = activation
            if _channels_last(first, second, third, (high, wide)):
                return Grid("channels last", (first, second))
            return Grid("channels first", (second, third))
        return _tokens(activation[1], (high, wide)) if rank == 3 else None
    if len(features) == 2 and rank == 3:  # a signal (C, T), or a sequence (T, C)
        if activation[1] != features[0]:
            return Grid("channels first", activation[2:])
        # As many channels as the signal has, or the sequence's steps: cells become no more.
        return Grid("channels last", activation[1:2]) if activation[2] > features[1] else None
    if len(features) == 4 and rank == 5:
        return Grid("channels first", activation[2:])
    return Grid("channels first", activation[2:]) if rank == 4 else None


def _channels_last(first: int, second: int, third: int, sides: tuple[int, int]) -> bool:
    # Convolutions without padding leave a picture of other proportions.
    return _alike((first, second), sides) and not _alike((second, third), sides, within=_CUT_OFF)


def _alike(cells: tuple[int, int], sides: tuple[int, int], within: float = 0.0) -> bool:
    """Whether the cells could be those of a picture of these sides, all divided by one number and rounded."""
    if min(*cells, *sides) < 1:
        return False
    if sides[0] == sides[1]:
        return cells[0] == cells[1]
    step = math.sqrt(math.prod(sides) / math.prod(cells))
    expected = [side / step for side in sides]
    return all(abs(cell - size) < max(1, within * size) for cell, size in zip(cells, expected, strict=True))


def _tokens(count: int, sides: tuple[int, int]) -> Grid | None:
    """The fewest tokens before a grid of the picture's proportions, or if there is none, of nearly these."""
    near = []
    for prefix in range(min(_MOST_PREFIX, count - 1) + 1):
        high = round(math.sqrt((count - prefix) * sides[0] / sides[1]))
        cells = (high, (count - prefix) // max(high, 1))
        if math.prod(cells) == count - prefix > 1 and _alike(cells, sides):
            near.append(Grid("tokens", cells, prefix))
    exact = [grid for grid in near if grid.cells[0] * sides[1] == grid.cells[1] * sides[0]]
    return next(iter(exact or near), None)

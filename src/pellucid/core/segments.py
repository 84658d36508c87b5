"""Groups of features that are taken away together: the players of a game, the regressors of a surrogate.

A segment lies over all channels: it is a set of *places*, the axes of an input behind its channels (H, W), or the
features themselves of inputs that have no such axes (tables).
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pellucid.core.checks import check_count
from pellucid.core.input import Preprocess
from pellucid.core.packing import Packing
from pellucid.core.recipe import Value
from pellucid.errors import ArgumentError

__all__ = ["HELD", "Columns", "Patches", "PatchesOrColumns", "SegmentMap", "Segments", "check_segments", "places_of",
           "segmented"]  # fmt: skip

HELD = -1
"""The label of places that belong to no segment, and are never taken away."""


def places_of(features: Sequence[int]) -> tuple[int, ...]:
    """The places of an input of this shape: (H, W) of (C, H, W), (F,) of (F,)."""
    return tuple(features[1:] if len(features) > 1 else features)


class Segments(ABC, Value):
    """A rule that divides each input into segments, numbered from 0."""

    @abstractmethod
    def labels(self, x: Float[Tensor, "b *features"], preprocess: Preprocess | None = None) -> Int[Tensor, "b *places"]:
        """The number of each place's segment, or HELD; `preprocess` says what the colours of a picture were."""


@dataclass(frozen=True)
class Patches(Segments):
    """A grid of `cells` along each axis, or (rows, columns); numbered row by row. No axis has more than its places.

    Raises:
        ArgumentError: not whole numbers from 1; when used, inputs without axes behind their channels, or with another
            number of them.

    Example:
        >>> import torch, pellucid as pl
        >>> pl.Patches(2).labels(torch.zeros(1, 3, 4, 4))[0]
        tensor([[0, 0, 1, 1],
                [0, 0, 1, 1],
                [2, 2, 3, 3],
                [2, 2, 3, 3]])
    """

    cells: int | tuple[int, ...] = 7

    def __post_init__(self) -> None:
        each = self.cells if isinstance(self.cells, tuple) else (self.cells,)
        for count in each or (0,):
            check_count("cells", count)

    def labels(self, x: Float[Tensor, "b *features"], preprocess: Preprocess | None = None) -> Int[Tensor, "b *places"]:
        if x.ndim < 3:
            raise ArgumentError(
                f"Patches are of pictures (B, C, H, W) or signals (B, C, T). Got {tuple(x.shape)}. For tables take "
                "Columns()."
            )
        sides = tuple(x.shape[2:])
        wanted = self.cells if isinstance(self.cells, tuple) else (self.cells,) * len(sides)
        if len(wanted) != len(sides):
            raise ArgumentError(f"Expected one number of cells for each of {len(sides)} axes, but got {self.cells}.")
        labels = torch.zeros(sides, dtype=torch.int64)
        for axis, (side, most) in enumerate(zip(sides, wanted, strict=True)):
            count = min(most, side)
            # The cell in which the middle of each place lies: sizes differ by one at most.
            at = ((torch.arange(side) * 2 + 1) * count).div(2 * side, rounding_mode="floor")
            labels = labels * count + at.view(-1, *(1,) * (len(sides) - 1 - axis))
        return labels.expand(len(x), *sides).to(x.device)


@dataclass(frozen=True)
class Columns(Segments):
    """Each column of a table by itself, those of a `group` together: the columns of one category, say.

    Groups come first, in their order, then the other columns in theirs.

    Raises:
        ArgumentError: a column in two groups; when used, a column that there is not, or inputs that are no table.

    Example:
        >>> import torch, pellucid as pl
        >>> pl.Columns(groups=((1, 3),)).labels(torch.zeros(1, 5))
        tensor([[1, 0, 2, 0, 3]])
    """

    groups: tuple[tuple[int, ...], ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "groups", tuple(tuple(group) for group in self.groups))
        each = [column for group in self.groups for column in group]
        for column in each:
            check_count("groups", column, least=0)
        if len(set(each)) < len(each) or not all(self.groups):
            raise ArgumentError(f"`groups` are sets of columns, none in two of them. Got {self.groups!r}.")

    def labels(self, x: Float[Tensor, "b *features"], preprocess: Preprocess | None = None) -> Int[Tensor, "b *places"]:
        if x.ndim != 2:
            raise ArgumentError(f"Columns are of tables (B, F). Got {tuple(x.shape)}. For pictures take Patches(7).")
        count = x.shape[1]
        numbers = {column: number for number, group in enumerate(self.groups) for column in group}
        if numbers and max(numbers) >= count:
            raise ArgumentError(f"Expected columns from 0 to {count - 1}, but `groups` has {max(numbers)}.")
        for column in range(count):
            if column not in numbers:
                numbers[column] = len(self.groups) + column - sum(grouped < column for grouped in self._grouped)
        return torch.tensor([numbers[column] for column in range(count)], device=x.device).expand(len(x), count)

    @property
    def _grouped(self) -> frozenset[int]:
        return frozenset(column for group in self.groups for column in group)


@dataclass(frozen=True)
class PatchesOrColumns(Segments):
    """Patches along each axis of pictures and signals, 7 if no other number is given; each column by itself of tables.

    Example:
        >>> import torch, pellucid as pl
        >>> rule = pl.PatchesOrColumns()
        >>> rule.labels(torch.zeros(1, 4)), int(rule.labels(torch.zeros(1, 3, 28, 28)).max())
        (tensor([[0, 1, 2, 3]]), 48)
    """

    cells: int = 7

    def __post_init__(self) -> None:
        check_count("cells", self.cells)

    def labels(self, x: Float[Tensor, "b *features"], preprocess: Preprocess | None = None) -> Int[Tensor, "b *places"]:
        return (Columns() if x.ndim == 2 else Patches(self.cells)).labels(x, preprocess)


@dataclass(frozen=True)
class SegmentMap(Segments):
    """Segments that were made elsewhere, the same for every input: `SegmentMap.of(labels)`; HELD (-1) is in none.

    Labels are of the places, or of all features: of sequences (B, T, C), whose steps come first, give (T, C).
    `runs` are (label, length) pairs, row by row.

    Raises:
        ArgumentError: labels that are not 0, 1, 2 ... without a gap; when used, inputs of other places.

    Example:
        >>> import torch, pellucid as pl
        >>> halves = pl.SegmentMap.of(torch.tensor([[0, 0, 1], [0, 1, 1]]))
        >>> halves.runs, halves.labels(torch.zeros(1, 3, 2, 3)).shape
        (((0, 2), (1, 1), (0, 1), (1, 2)), torch.Size([1, 2, 3]))
    """

    size: tuple[int, ...]
    runs: tuple[tuple[int, int], ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "size", tuple(self.size))
        object.__setattr__(self, "runs", tuple((int(label), int(length)) for label, length in self.runs))
        known = sorted({label for label, _ in self.runs} - {HELD})
        whole = all(length > 0 for _, length in self.runs) and sum(n for _, n in self.runs) == math.prod(self.size)
        if not known or known != list(range(len(known))) or not whole:
            raise ArgumentError(
                f"Segments are numbered 0, 1, 2 ... without a gap, and cover {self.size}. Got the numbers {known[:9]}."
            )

    @classmethod
    def of(cls, labels: Tensor) -> "SegmentMap":
        """The segments in a tensor of whole numbers (*places)."""
        if labels.is_floating_point() or not labels.numel():
            raise ArgumentError(f"Segments are whole numbers, one for each place. Got {labels.dtype} {labels.shape}.")
        values, lengths = torch.unique_consecutive(labels.detach().cpu().flatten(), return_counts=True)
        return cls(tuple(labels.shape), tuple(zip(values.tolist(), lengths.tolist(), strict=True)))

    def labels(self, x: Float[Tensor, "b *features"], preprocess: Preprocess | None = None) -> Int[Tensor, "b *places"]:
        if self.size not in (places_of(x.shape[1:]), tuple(x.shape[1:])):
            raise ArgumentError(
                f"Expected inputs of places {self.size}, as the segments have, but got {places_of(x.shape[1:])}."
            )
        numbers, lengths = zip(*self.runs, strict=True)
        flat = torch.tensor(numbers).repeat_interleave(torch.tensor(lengths))
        return flat.view(self.size).to(x.device).expand(len(x), *self.size)


def check_segments(value: object) -> None:
    """Raises ArgumentError unless `value` says how inputs are divided."""
    if not isinstance(value, Segments):
        raise ArgumentError(f"`segments` is a rule such as pl.Patches(7) or pl.Columns(). Got {value!r}.")


def segmented(
    segments: Segments, x: Float[Tensor, "b *features"], preprocess: Preprocess | None, packing: Packing | None
) -> Int[Tensor, "b *places"]:
    """The labels of each input; of packed inputs the parts have segments of their own, and a label for each feature.

    Raises:
        ArgumentError: an input that falls into no segment at all.
    """
    if packing is None:
        labels = segments.labels(x, preprocess)
    else:
        count, columns = 0, []
        for (_, part), held in zip(packing.parts(x).items(), packing.held, strict=True):
            if held:
                columns.append(torch.full((len(x), part[0].numel()), HELD, device=x.device))
                continue
            own = segments.labels(part if part.ndim > 1 else part[:, None], preprocess)
            wide = own[:, None].expand(len(x), *part.shape[1:]) if part.ndim > 2 else own
            columns.append(torch.where(wide == HELD, HELD, wide + count).reshape(len(x), -1))
            count = max(count, int(columns[-1].max()) + 1)
        labels = torch.cat(columns, 1)
    if bool((labels.flatten(1).amax(1) < 0).any()):
        raise ArgumentError(f"{segments!r} leaves an input without a segment: there is nothing to take away.")
    return labels

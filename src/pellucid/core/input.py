"""What goes into a model, and what is needed to draw an explanation back onto it."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from pellucid.core.packing import Packing, pack
from pellucid.core.recipe import Value
from pellucid.errors import ArgumentError

__all__ = ["Input", "Preprocess", "View"]


@dataclass(frozen=True, eq=False)
class View:
    """The original of one input and the map back to it: plain data that its modality knows how to draw.

    `kind` names the modality, `geometry` (JSON data) says where the features lie in the original, `preview` is the
    original itself in a drawable form (for an image: uint8, (H, W, 3)).
    """

    kind: str
    geometry: dict[str, Any]
    preview: Tensor


@dataclass(frozen=True, eq=False)
class Input:
    """Inputs ready for a model: `tensor` is (B, *features), floating point; `sources` and `views` have B entries.

    `notes` say what reading did to each original that a user should know. Several tensors are packed into rows, and
    `packing` takes them apart: `Input.of`.

    Example:
        >>> import torch, pellucid as pl
        >>> x = pl.Input(torch.zeros(2, 5))
        >>> len(x), x[1].sources
        (2, ('input 1',))
    """

    tensor: Tensor
    sources: tuple[str, ...] = ()
    views: tuple[View, ...] = ()
    notes: tuple[tuple[str, ...], ...] = field(default=())
    packing: Packing | None = None

    @classmethod
    def of(cls, parts: Mapping[str, Tensor] | Sequence[Tensor]) -> "Input":
        """The input of a network that takes several tensors (B, ...): a dict by name, a tuple by place.

        Parts that are not floating point are given to the network as they are, and not explained.

        Raises:
            ArgumentError: parts that do not go together: see core/packing.py.
        """
        rows, packing = pack(parts)
        return cls(rows, packing=packing)

    def __post_init__(self) -> None:
        if not isinstance(self.tensor, Tensor) or self.tensor.ndim < 2 or len(self.tensor) == 0:
            got = tuple(self.tensor.shape) if isinstance(self.tensor, Tensor) else type(self.tensor).__name__
            raise ArgumentError(
                f"An input is a tensor (B, *features) with at least one row. Got {got}. "
                "For a single example add the batch dimension: x[None]."
            )
        if not self.tensor.is_floating_point():
            raise ArgumentError(
                f"An input is a floating-point tensor. Got {self.tensor.dtype}. Convert it the way the model was "
                "trained (for bytes of a picture: model.read(picture)). Tokens have no gradient: give them by name, "
                "{'tokens': x}, or by place, (x,), and explain the layer that embeds them: "
                "AtLayer(base=..., layer=...)."
            )
        count = len(self.tensor)
        if not self.sources:
            object.__setattr__(self, "sources", tuple(f"input {i}" for i in range(count)))
        if not self.notes:
            object.__setattr__(self, "notes", ((),) * count)
        if len(self.sources) != count or len(self.notes) != count or len(self.views) not in (0, count):
            raise ArgumentError(
                f"Expected one source, note and view for each of {count} inputs, but got {len(self.sources)}, "
                f"{len(self.notes)} and {len(self.views)}."
            )

    def __len__(self) -> int:
        return len(self.tensor)

    def __getitem__(self, index: int | slice) -> "Input":
        if isinstance(index, slice):
            return Input(self.tensor[index], self.sources[index], self.views[index], self.notes[index], self.packing)
        if not -len(self) <= index < len(self):
            raise IndexError(f"Input {index} of {len(self)}.")
        i = index % len(self)
        one = slice(i, i + 1)
        return Input(self.tensor[one], self.sources[one], self.views[one], self.notes[one], self.packing)

    def __iter__(self) -> Iterator["Input"]:
        return (self[i] for i in range(len(self)))


class Preprocess(ABC, Value):
    """How originals become inputs: settings only, recorded in the recipe."""

    @abstractmethod
    def read(self, sources: Any) -> Input:
        """The input of one original or of a list of them."""

    @abstractmethod
    def level(self, value: float) -> Tensor:
        """What an original of one value everywhere, 0 (black, silence) to 1, becomes; broadcasts to one input."""

    @property
    @abstractmethod
    def bounds(self) -> tuple[float, float]:
        """The least and the largest value that reading can give, to recognise an input made in another way."""

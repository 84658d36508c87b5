"""What a method claims about itself. Every claim is tested over the whole catalogue (tests/contract)."""

from dataclasses import dataclass, fields
from enum import Flag, StrEnum, auto
from typing import Literal

__all__ = ["Access", "Applicability", "Cost", "MethodCard", "Modality", "Needs", "Per", "Scope", "Stage"]


class Scope(StrEnum):
    """What is explained: one prediction, or the model over a data set."""

    LOCAL = "local"
    GLOBAL = "global"


class Access(StrEnum):
    """What of the model must be visible. Never declared: derived from `Needs`."""

    WHITE_BOX = "white-box"
    BLACK_BOX = "black-box"


class Stage(StrEnum):
    """Whether the model is its own explanation, or is explained after training."""

    INTRINSIC = "intrinsic"
    POST_HOC = "post-hoc"


class Applicability(StrEnum):
    """Whether a method needs one kind of model, or serves any that offers its `Needs`."""

    MODEL_SPECIFIC = "model-specific"
    MODEL_AGNOSTIC = "model-agnostic"


class Modality(StrEnum):
    """The kind of input."""

    IMAGE = "image"
    TEXT = "text"
    AUDIO = "audio"
    TABLE = "table"


class Needs(Flag):
    """What a method needs and a model offers; a call compares the two before any work."""

    NOTHING = 0
    SCORES = auto()
    GRADIENTS = auto()
    ACTIVATIONS = auto()
    MODULES = auto()
    WEIGHTS = auto()
    OPERATIONS = auto()
    """What is executed in a pass, one operation after the other."""

    def __str__(self) -> str:
        return " and ".join(str(flag.name).lower() for flag in self) or "nothing"


class Per(StrEnum):
    """What a map has a number for."""

    FEATURE = "feature"
    PIXEL = "pixel"
    CELL = "cell of a layer"
    UNIT = "unit of a layer"
    SEGMENT = "segment"
    """Each place of a segment has the segment's number."""


@dataclass(frozen=True)
class Cost:
    """Passes of one input through the network; `channels` are forward passes for each channel of a layer, `segments`
    for each segment of the input.
    """

    forward: int = 0
    backward: int = 0
    channels: int = 0
    segments: int = 0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    def __mul__(self, times: int) -> "Cost":
        return Cost(*(getattr(self, f.name) * times for f in fields(self)))

    def __str__(self) -> str:
        each = "".join(
            f", {count} forward for each {what}"
            for what, count in (("channel", self.channels), ("segment", self.segments))
            if count
        )
        return f"{self.forward} forward, {self.backward} backward{each}"


@dataclass(frozen=True, kw_only=True)
class MethodCard:
    """A method's place in the taxonomy, the unit of its maps, its cost for one input and its source.

    Example:
        >>> import pellucid as pl
        >>> card = pl.SmoothGrad(n_samples=20).card
        >>> card.access.value, card.stage.value, str(card.cost)
        ('white-box', 'post-hoc', '20 forward, 20 backward')
    """

    name: str
    title: str
    scope: Scope
    stage: Stage
    applicability: Applicability
    needs: Needs
    cost: Cost
    reference: str
    unit: str = "score per unit of input"
    per: Per = Per.FEATURE
    channels: Literal["max_abs", "sum"] = "max_abs"
    """How a picture makes one number of the channels, unless another way is asked for: signed where they add up."""

    stands: bool = False
    """Whether the map stands on a constant that means nothing by itself: drawing takes its mean off, and says so."""

    sampled: bool = False
    modalities: frozenset[Modality] = frozenset(Modality)
    caveats: tuple[str, ...] = ()

    @property
    def access(self) -> Access:
        """White-box if and only if something besides the scores must be visible."""
        return Access.WHITE_BOX if self.needs & ~Needs.SCORES else Access.BLACK_BOX

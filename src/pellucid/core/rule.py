"""Rules in place of derivatives: which operations of a pass get which, and what the way back by them gives.

A message is what stands where a gradient would: of what an operation gave, how much the target changes with it by the
rules. Relevance is message times value, so that a rule which gives the derivative where f is linear, and f(x) / x where
it is not, hands on all relevance; autograd's own derivative serves wherever the two agree.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from pellucid.core.operation import Edge, Kind, Operation

__all__ = ["Assigned", "Keep", "Rule", "RuleBook", "RulePass", "Sent", "Told"]


class Sent(NamedTuple):
    """A message to where an operand came from; or relevance that is `landed`, which only layout still moves. Without an
    edge it is what a rule has seen, with a row for each input or several.
    """

    edge: Edge | None
    message: Tensor
    landed: bool = False


Rule = Callable[[Operation, Sequence[Tensor | None]], list[Sent]]
"""What an operation makes of the messages to its outputs."""


@dataclass(frozen=True)
class Keep:
    """Of operations of which kinds the operands that depend on the input, and the outputs, are kept."""

    operands: frozenset[Kind] = frozenset()
    outputs: frozenset[Kind] = frozenset()
    named: bool = False
    """Whether operations know the modules that ran them."""
    embedded: bool = False
    """Whether a pass of whole numbers alone may begin at what embeds them: nothing reaches the input."""


@dataclass(frozen=True)
class Assigned:
    """The rule of an operation, None for its own derivative, and how it is told; or why there is none."""

    rule: Rule | None
    words: str
    refusal: str = ""


class RuleBook(ABC):
    """A method's rules. A frozen value; `keep` says which values of a pass they need."""

    @property
    @abstractmethod
    def keep(self) -> Keep:
        """What is kept of the pass."""

    @property
    def footprint(self) -> Hashable:
        """What decides how much memory passes by these rules take."""
        return type(self), self.keep

    @abstractmethod
    def assign(self, operations: Sequence[Operation], beside: Sequence[Operation] = ()) -> Mapping[Operation, Assigned]:
        """The rule of each operation that leads to the target, in the order in which they ran.

        `beside` are the same operations for other rows, such as baselines. What is left out gets its own derivative.

        Raises:
            RuleError: the method says nothing of such networks.
        """


class Told(NamedTuple):
    """One operation that was executed and what a method makes of it, for people to read."""

    module: str
    what: str
    kind: Kind
    shape: tuple[int, ...]
    rule: str
    refused: bool


class RulePass(NamedTuple):
    """The message at each input (B, *features), the relevance that arrived as such, the targets (b,), those of the rows
    beside, and what rules have seen, the last operation's first.
    """

    messages: Tensor
    landed: Tensor | None
    scores: Tensor
    beside: Tensor | None = None
    seen: tuple[Tensor, ...] = ()

    @classmethod
    def joined(cls, parts: Sequence["RulePass"], join: Callable[[Sequence[Tensor]], Tensor]) -> "RulePass":
        """The passes of several shares of the rows as one."""
        landed = [part.landed for part in parts if part.landed is not None]
        beside = [part.beside for part in parts if part.beside is not None]
        return cls(
            join([part.messages for part in parts]),
            join(landed) if landed else None,
            join([part.scores for part in parts]),
            join(beside) if beside else None,
            tuple(join(each) for each in zip(*(part.seen for part in parts), strict=True)),
        )

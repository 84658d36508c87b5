"""Methods that go back through what was executed by rules of their own, and the list of what each operation gets."""

from abc import abstractmethod
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from pellucid.core.explainer import Explainer
from pellucid.core.input import Input
from pellucid.core.model import Ask, Inputs, Model, as_input
from pellucid.core.random import Key
from pellucid.core.rule import RuleBook, Told
from pellucid.core.target import TargetSpec, settle

__all__ = ["Ruled"]


@dataclass(frozen=True, kw_only=True)
class Ruled(Explainer):
    """Abstract: a method of rules for operations."""

    @abstractmethod
    def book(self, model: Model, x: Float[Tensor, "b *features"]) -> RuleBook:
        """The rules for inputs like x."""

    def beside(self, model: Model, x: Float[Tensor, "b *features"]) -> Float[Tensor, "b *features"] | None:
        """The rows with which each operation is compared, if it is."""
        return None

    def asks(self, model: Model, x: Float[Tensor, "b *features"]) -> Ask | None:
        return Ask(record=self.book(model, x).keep)

    def operations(self, model: Model, x: Inputs, target: TargetSpec = None) -> list[Told]:
        """What the network executes for the first input, in order, and what this method makes of each operation.

        Raises:
            MissingNeed: the model does not offer what the method needs.
            RuleError: the method says nothing of such networks.
        """
        self.check_needs(model)
        given: Input = as_input(x)
        with model.undisturbed(Key.named("operations"), given.packing) as quiet:
            placed = quiet.place(given.tensor[:1])
            targets = settle(target, quiet.prediction(placed))
            return quiet.told(placed, targets, self.book(quiet, placed), self.beside(quiet, placed))

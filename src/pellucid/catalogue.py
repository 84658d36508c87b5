"""Every method there is, found by walking `explainers/` and the entry points of installed packages, and queried."""

import difflib
import importlib
import inspect
import pkgutil
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points

from pellucid import explainers
from pellucid.core.card import Access, Applicability, Cost, MethodCard, Modality, Scope, Stage
from pellucid.core.checks import check_choice
from pellucid.core.explainer import Method
from pellucid.core.model import Model
from pellucid.errors import ArgumentError

__all__ = ["Excluded", "Methods", "find", "methods", "registered"]

ENTRY_POINTS = "pellucid.explainers"
"""The group under which another package names a module of its own methods."""


@dataclass(frozen=True)
class Excluded:
    """A method that does not fit a query, and every reason why."""

    card: MethodCard
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class Methods:
    """The answer to a query: the cards that fit, and those that do not with the reasons."""

    fitting: tuple[MethodCard, ...]
    excluded: tuple[Excluded, ...]

    def __len__(self) -> int:
        return len(self.fitting)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the methods that fit."""
        return tuple(card.name for card in self.fitting)


@cache
def registered() -> dict[str, type[Method]]:
    """Every method by the name on its card, made with default settings."""
    modules = [
        importlib.import_module(f"{explainers.__name__}.{found.name}")
        for found in pkgutil.iter_modules(explainers.__path__)
        if not found.name.startswith("_")
    ]
    modules += [entry.load() for entry in entry_points(group=ENTRY_POINTS)]
    classes: dict[str, type[Method]] = {}
    for module in modules:
        for _, member in sorted(inspect.getmembers(module, inspect.isclass)):
            if member.__module__ == module.__name__ and issubclass(member, Method) and not inspect.isabstract(member):
                classes[member().card.name] = member
    return classes


def find(name: str) -> type[Method]:
    """The method of that name.

    Raises:
        ArgumentError: there is none; the near ones are named.
    """
    known = registered()
    plain = name.strip().lower().replace("_", "-").replace(" ", "-")
    for key, method in known.items():
        if plain.replace("-", "") == key.replace("-", ""):
            return method
    near = difflib.get_close_matches(plain, known, n=3, cutoff=0.5) or sorted(known)
    raise ArgumentError(f"There is no method {name!r}. Did you mean {' or '.join(near)}? `pellucid methods` lists all.")


def methods(
    *,
    scope: str | None = None,
    access: str | None = None,
    stage: str | None = None,
    applicability: str | None = None,
    modality: str | None = None,
    model: Model | None = None,
    budget: int | None = None,
) -> Methods:
    """The methods that fit, and for every other the reasons why not.

    The first four are the axes of the taxonomy, `modality` the kind of input, `model` a Model that must offer what the
    method needs, `budget` the most passes (forward plus backward) for one input.

    Raises:
        ArgumentError: a value that its axis does not have.

    Example:
        >>> import pellucid as pl
        >>> pl.methods(scope="global").names
        ('linear-explanation',)
    """
    axes = {"scope": (scope, Scope), "access": (access, Access), "stage": (stage, Stage)}
    axes |= {"applicability": (applicability, Applicability), "modality": (modality, Modality)}
    for name, (value, values) in axes.items():
        if value is not None:
            check_choice(name, value, [member.value for member in values])
    wanted = {name: str(value) for name, (value, _) in axes.items() if value is not None and name != "modality"}
    fitting, excluded = [], []
    for method in registered().values():
        card = method().card
        reasons = [f"{name} is {getattr(card, name)}" for name, value in wanted.items() if getattr(card, name) != value]
        if modality is not None and modality not in card.modalities:
            reasons.append(f"does not explain {modality} inputs")
        if model is not None and (missing := card.needs & ~model.offers):
            reasons.append(f"needs {missing}, which {model.name} does not offer")
        if budget is not None and _passes(card.cost) > budget:
            reasons.append(f"takes {_passes(card.cost)} passes, more than {budget}")
        if reasons:
            excluded.append(Excluded(card, tuple(reasons)))
        else:
            fitting.append(card)
    return Methods(tuple(fitting), tuple(excluded))


def _passes(cost: Cost) -> int:
    return cost.forward + cost.backward

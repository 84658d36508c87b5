"""Settings as data and back: what was computed, in a form that can be stored and run again.

A recipe names only classes that are registered here. Nothing is ever imported by a name that stands in a file.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

from pellucid.errors import RecipeError

__all__ = ["Recipe", "Value", "decode", "discover_with", "encode"]

_registry: dict[str, type["Value"]] = {}
_discoverers: list[Callable[[], object]] = []


class Value:
    """A frozen dataclass of settings that a recipe can hold: subclassing registers it.

    pellucid's own go by their class name, those of other packages by `package.Name`.
    """

    recipe_name: ClassVar[str]

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        package = cls.__module__.partition(".")[0]
        cls.recipe_name = cls.__name__ if package == "pellucid" else f"{package}.{cls.__name__}"
        _registry[cls.recipe_name] = cls


def discover_with(discover: Callable[[], object]) -> None:
    """Call `discover` once a recipe names an unknown class; it imports what is installed, whatever the name is."""
    _discoverers.append(discover)


def encode(value: object) -> Any:
    """The JSON form of settings: numbers, text, booleans, None, tuples and registered values.

    Raises:
        RecipeError: the value is none of these, so a recipe could not bring it back.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, tuple):
        return [encode(item) for item in value]
    if isinstance(value, Value):
        settings = {f.name: encode(getattr(value, f.name)) for f in fields(value)}  # type: ignore[arg-type]  # see Value
        return {"type": type(value).recipe_name, **({"settings": settings} if settings else {})}
    raise RecipeError(
        f"A recipe holds numbers, text, tuples and registered settings. Got {type(value).__name__}. "
        "Make it a frozen dataclass that derives from pellucid.core.recipe.Value."
    )


def decode(data: Any) -> Any:
    """The settings that `encode` wrote; lists come back as tuples.

    Raises:
        RecipeError: a class that is not registered, or settings that it does not take.
    """
    if isinstance(data, list):
        return tuple(decode(item) for item in data)
    if not isinstance(data, Mapping):
        return data
    name, given = data.get("type"), data.get("settings", {})
    if not isinstance(name, str) or not isinstance(given, Mapping):
        raise RecipeError(f"Expected the name of a class and its settings, but got {name!r} and {given!r:.80}.")
    if name not in _registry:
        for discover in _discoverers:
            discover()
    if name not in _registry:
        raise RecipeError(
            f"The recipe names {name!r}, which is not registered here. Install or import the package that defines it, "
            "then load the file again."
        )
    settings = {key: decode(item) for key, item in given.items()}
    try:
        return _registry[name](**settings)
    except (TypeError, ValueError) as error:
        raise RecipeError(
            f"{name} does not accept the settings in the recipe: {error}. It may come from another version of pellucid."
        ) from error


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything needed to compute an attribution again, as plain data.

    `explainer` and `targets` are encoded settings; `keys` (hexadecimal) key the noise of each input, `inputs` are the
    hashes of their content, `weights` that of the network; `run` and `versions` say how and with what it was computed.
    """

    explainer: Any
    targets: list[Any]
    inputs: list[str]
    keys: list[str]
    weights: str
    model: str
    run: dict[str, Any]
    preprocess: Any = None
    versions: dict[str, str] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> str:
        """Sorted and compact, so that the same computation gives the same bytes."""
        return json.dumps(vars(self), sort_keys=True, separators=(",", ":"), allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> "Recipe":
        """The recipe that `to_json` wrote.

        Raises:
            RecipeError: the text is not a recipe, or one of another version.
        """
        try:
            return cls(**json.loads(text))
        except (TypeError, ValueError) as error:
            raise RecipeError(
                f"Expected the recipe of an attribution, but could not read it: {error}. "
                "Was the file written by another version of pellucid?"
            ) from error

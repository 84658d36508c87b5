"""Checks at the public doors: what was expected, what came, what to do."""

import math
from collections.abc import Collection

from pellucid.errors import ArgumentError

__all__ = ["check_choice", "check_count", "check_number", "check_seed"]


def check_count(name: str, value: object, least: int = 1) -> None:
    """Raises ArgumentError unless `value` is a whole number of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ArgumentError(f"`{name}` is a whole number, {least} or more. Got {value!r}.")


def check_seed(seed: object) -> None:
    """Raises ArgumentError unless `seed` fits the 64 bits that are hashed into the noise key."""
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**64:
        raise ArgumentError(f"`seed` is a whole number from 0 to 2**64 - 1. Got {seed!r}.")


def check_choice(name: str, value: object, choices: Collection[str]) -> None:
    """Raises ArgumentError unless `value` is one of `choices`."""
    if value not in choices:
        raise ArgumentError(f"`{name}` is one of {', '.join(map(repr, choices))}. Got {value!r}.")


def check_number(name: str, value: object, least: float = -math.inf) -> None:
    """Raises ArgumentError unless `value` is a finite number of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < least:
        bound = "" if least == -math.inf else f", {least:g} or more"
        raise ArgumentError(f"`{name}` is a finite number{bound}. Got {value!r}.")

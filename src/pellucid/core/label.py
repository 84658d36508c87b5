"""The names of a model's classes, and which class a person means by a name.

Imports neither torch nor numpy, so that a name can be checked before either is loaded.
"""

import difflib
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import NoReturn

from pellucid.errors import ArgumentError, TargetError

__all__ = ["Labels"]

_SHOWN = 8  # classes in an error about an ambiguous name
_NEAREST = 3  # spellings, names and single words, in an error about an unknown name
_WIDTH = 60  # characters of a name in an error

_INDEX = re.compile(r"[+-]?[0-9]{1,18}")
_COMMA = re.compile(r",(?![0-9])")  # parts synonyms, not the thousands of "1,000 dollars"
_APOSTROPHE = re.compile(r"['\u2019]")


@dataclass(frozen=True)
class Labels:
    """One name a class, in the order of the model's outputs. A name may be several synonyms, with commas between."""

    names: tuple[str, ...]

    def __post_init__(self) -> None:
        if not isinstance(self.names, tuple) or not self.names or not all(isinstance(n, str) for n in self.names):
            got = _clipped(repr(self.names))
            raise ArgumentError(f"`names` is a tuple with a text for each class of the model. Got {got}.")

    @staticmethod
    @cache
    def numbered(count: int) -> "Labels":
        """The names of classes that have none; made once, with what is derived from them."""
        return Labels(tuple(f"class {i}" for i in range(count)))

    def find(self, text: str) -> int:
        """The index of the class that `text` means: a name, a synonym, words of one, or the index in digits.

        The first of these that fits any class decides: a whole name, synonym or short name but for case; an index;
        a name or synonym but for punctuation and spaces; the words of `text` among the words of a synonym.

        >>> Labels(("tabby, tabby cat", "tiger cat")).find("Tiger-Cat")
        1

        Raises:
            TargetError: no class fits, or more than one does.
        """
        if classes := self._spelled.get(_spelling(text)):
            return self._one(text, classes)
        if _INDEX.fullmatch(text.strip()):
            return self._checked(int(text))
        words = _words(text)
        if classes := self._run_together.get("".join(words)):
            return self._one(text, classes)
        if words and (classes := self._having(frozenset(words))):
            return self._one(text, classes)
        return self._unknown(text)

    def name(self, index: int) -> str:
        """All synonyms of the class."""
        return self.names[self._checked(index)]

    def short(self, index: int) -> str:
        """The first synonym of the class; with its index, "crane (134)", where another class begins alike."""
        return self._shorts[self._checked(index)]

    @cached_property
    def _synonyms(self) -> tuple[tuple[str, ...], ...]:
        return tuple(tuple(part.strip() for part in _COMMA.split(name) if part.strip()) for name in self.names)

    @cached_property
    def _shorts(self) -> tuple[str, ...]:
        firsts = [next(iter(synonyms), "") for synonyms in self._synonyms]
        shared = Counter(_spelling(first) for first in firsts)
        return tuple(
            first if first and shared[_spelling(first)] == 1 else f"{first} ({index})".lstrip()
            for index, first in enumerate(firsts)
        )

    @cached_property
    def _spelled(self) -> dict[str, list[int]]:
        rows = zip(self.names, self._shorts, self._synonyms, strict=True)
        return _classes_by({_spelling(part) for part in (name, short, *synonyms)} for name, short, synonyms in rows)

    @cached_property
    def _run_together(self) -> dict[str, list[int]]:
        rows = zip(self.names, self._synonyms, strict=True)
        return _classes_by({"".join(_words(part)) for part in (name, *synonyms)} for name, synonyms in rows)

    @cached_property
    def _vocabulary(self) -> tuple[tuple[frozenset[str], ...], ...]:
        return tuple(tuple(frozenset(_words(part)) for part in synonyms) for synonyms in self._synonyms)

    @cached_property
    def _by_word(self) -> dict[str, list[int]]:
        return _classes_by(set().union(*synonyms) for synonyms in self._vocabulary)

    def _having(self, words: frozenset[str]) -> list[int]:
        return [i for i, synonyms in enumerate(self._vocabulary) if any(words <= synonym for synonym in synonyms)]

    def _checked(self, index: int) -> int:
        if not 0 <= index < len(self.names):
            raise TargetError(f"The index of a class is 0 to {len(self.names) - 1} for this model. Got {index}.")
        return index

    def _one(self, text: str, classes: Sequence[int]) -> int:
        if len(classes) == 1:
            return classes[0]
        more = f"; and {len(classes) - _SHOWN} more" if len(classes) > _SHOWN else ""
        raise TargetError(
            f"{_clipped(text)!r} fits {len(classes)} classes: {self._listed(classes[:_SHOWN])}{more}. "
            f"Name one by its index, for example '{classes[0]}'."
        )

    def _unknown(self, text: str) -> NoReturn:
        # also word by word: "retreiver" is far from "golden retriever" as a whole
        near = difflib.get_close_matches(_spelling(text), self._spelled.keys() | self._by_word.keys(), n=_NEAREST)
        fits = (index for key in near for index in self._spelled.get(key, []) + self._by_word.get(key, []))
        classes = list(dict.fromkeys(fits))[:_SHOWN]
        nearest = f"The nearest names: {self._listed(classes)}." if classes else "No name is spelled nearly so."
        count = len(self.names)
        raise TargetError(
            f"Expected the name of one of the model's {count} classes, or an index from 0 to {count - 1}. "
            f"Got {_clipped(text)!r}. {nearest}"
        )

    def _listed(self, classes: Iterable[int]) -> str:
        return "; ".join(f"{index} {_clipped(self.names[index])}" for index in classes)


def _spelling(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def _words(text: str) -> list[str]:
    """The words of `text` without case and punctuation. Accents stay: in many scripts they make another letter."""
    joined = _APOSTROPHE.sub("", _spelling(text))
    return "".join(c if unicodedata.category(c)[0] in "LMN" else " " for c in joined).split()


def _classes_by(keys: Iterable[set[str]]) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for index, of_class in enumerate(keys):
        for key in of_class - {""}:
            found.setdefault(key, []).append(index)
    return found


def _clipped(text: str) -> str:
    return text if len(text) <= _WIDTH else text[: _WIDTH - 1] + "…"

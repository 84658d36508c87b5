"""What somebody else wrote (a server, a file), as it may stand in an error: on one line, short, and only signs that
are printed, since others act on a terminal.
"""

from collections.abc import Iterable

__all__ = ["in_short", "listed", "one_line"]


def one_line(text: str, most: int = 200) -> str:
    """The text with spaces for what is not printable, cut to `most` signs."""
    return in_short(" ".join("".join(c if c.isprintable() else " " for c in text).split()), most)


def in_short(text: str, most: int) -> str:
    """The text, cut to `most` signs."""
    return text if len(text) <= most else text[: most - 1] + "…"


def listed(names: Iterable[str], most: int = 10) -> str:
    """The first of these names, each as Python writes a text, and how many more there are."""
    found = list(names)
    first = ", ".join(repr(in_short(name, 60)) for name in found[:most])
    return first + (f" and {len(found) - most} more" if len(found) > most else "")

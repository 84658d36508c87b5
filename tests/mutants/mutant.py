"""What a deliberate bug is."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutant:
    """In `file` (under src/pellucid) the text `before`, which stands there once, becomes `after`."""

    name: str
    file: str
    before: str
    after: str
    tests: tuple[str, ...]

"""The 1000 classes of ILSVRC 2012, in the order of every network trained on them: sorted by WordNet id."""

from functools import cache
from importlib.resources import files

from pellucid.errors import ModelError

__all__ = ["labels"]

_CLASSES = 1000


@cache
def labels() -> tuple[str, ...]:
    """The WordNet synonyms of each class, as in "tabby, tabby cat", which is class 281."""
    # lines of index, WordNet id and synonyms, with tabs between
    text = (files("pellucid") / "models" / "imagenet1k.tsv").read_text("utf-8")
    rows = [line.split("\t") for line in text.splitlines()]
    if [row[0] for row in rows] != [str(index) for index in range(_CLASSES)]:
        raise ModelError(
            f"imagenet1k.tsv holds {_CLASSES} lines that begin with their index, 0 to {_CLASSES - 1}. "
            f"Got {len(rows)} lines, or others. The installed file is damaged: install pellucid again."
        )
    return tuple(row[2] for row in rows)

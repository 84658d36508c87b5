"""The class names of ImageNet: complete, in the order of the network's outputs, and checked when read."""

from importlib.resources import files
from pathlib import Path

import pytest

from pellucid.errors import ModelError
from pellucid.models import imagenet
from pellucid.models.imagenet import labels


def rows() -> list[list[str]]:
    text = (files("pellucid") / "models" / "imagenet1k.tsv").read_text("utf-8")
    return [line.split("\t") for line in text.splitlines()]


def test_there_is_a_name_for_each_of_the_1000_classes() -> None:
    assert len(labels()) == 1000
    assert all(labels())


@pytest.mark.parametrize(
    ("index", "name"),
    [
        (0, "tench, Tinca tinca"),
        (134, "crane"),
        (281, "tabby, tabby cat"),
        (517, "crane"),
        (999, "toilet tissue, toilet paper, bathroom tissue"),
    ],
)
def test_a_class_has_its_wordnet_synonyms(index: int, name: str) -> None:
    assert labels()[index] == name


def test_the_order_is_that_of_the_wordnet_ids() -> None:
    ids = [row[1] for row in rows()]
    assert ids == sorted(ids)
    assert len(set(ids)) == 1000


def test_the_names_are_those_of_the_challenge(shared_data: Path) -> None:
    lines = (shared_data / "ilsvrc2012-val-650" / "synset_words.txt").read_text("utf-8").splitlines()
    assert [f"{row[1]} {name}" for row, name in zip(rows(), labels(), strict=True)] == lines


def test_the_file_is_read_once() -> None:
    assert labels() is labels()


@pytest.mark.parametrize("kept", [slice(999), slice(1, None), slice(None, None, -1)], ids=["short", "late", "reversed"])
def test_a_damaged_file_is_refused(kept: slice, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "models").mkdir()
    damaged = "".join("\t".join(row) + "\n" for row in rows()[kept])
    (tmp_path / "models" / "imagenet1k.tsv").write_text(damaged, "utf-8")
    monkeypatch.setattr(imagenet, "files", lambda _: tmp_path)
    with pytest.raises(ModelError, match="install pellucid again"):
        labels.__wrapped__()

"""What stands in a model.toml or in options, and what is refused by name."""

import os
from pathlib import Path

import pytest

from pellucid.errors import ArgumentError, ModelError
from pellucid.models.description import Description, read_description, read_labels

FULL = """
[input]
size = [32, 48]
mean = [0.4, 0.5, 0.6]
std = 0.5
resize = "squash"
channels = "bgr"

[output]
labels = "names.txt"
kind = "probabilities"
select = 1
"""


@pytest.fixture
def toml(tmp_path):
    def write(text, name="model.toml"):
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


def test_a_full_description_is_read_as_it_stands(toml):
    toml("cat\ndog\n", "names.txt")
    found = read_description(toml(FULL))
    prepare = found.preprocess("net")
    assert (prepare.size, prepare.mean, prepare.std) == ((32, 48), (0.4, 0.5, 0.6), 0.5)
    assert (prepare.resize, prepare.channels) == ("squash", "bgr")
    assert (found.labels, found.kind, found.select) == (("cat", "dog"), "probabilities", 1)


def test_labels_may_stand_in_the_description(toml):
    assert read_description(toml('[output]\nlabels = ["cat", "dog"]')).labels == ("cat", "dog")


def test_an_empty_description_says_nothing(toml):
    assert read_description(toml("")) == Description()


def test_a_mark_at_the_beginning_of_a_file_is_no_part_of_it(toml):
    assert read_description(toml(b"\xef\xbb\xbf[input]\nsize = 8\n")).input == (("size", 8),)
    assert read_labels(toml(b"\xef\xbb\xbfcat\ndog", "names.txt")) == ("cat", "dog")


def test_the_first_of_two_descriptions_goes_first():
    mine = Description((("size", 8),), labels=("a",))
    theirs = Description((("size", 9), ("mean", 0.5)), labels=("b",), kind="logits", select=0)
    merged = mine.over(theirs)
    assert dict(merged.input) == {"size": 8, "mean": 0.5}
    assert (merged.labels, merged.kind, merged.select) == (("a",), "logits", 0)


def test_an_index_of_zero_is_not_overruled():
    assert Description(select=0).over(Description(select=1)).select == 0


@pytest.mark.doors
@pytest.mark.parametrize(
    ("known", "told"),
    [
        ((), "net: size, mean, std of its inputs are not known. Give --size --mean --std, or a model.toml beside it"),
        ((("size", 8), ("mean", 0.5)), "net: std of its inputs is not known. Give --std, or a model.toml beside it"),
    ],
)
def test_what_is_missing_is_named(known, told):
    with pytest.raises(ModelError) as caught:
        Description(known).preprocess("net")
    assert told in str(caught.value)


@pytest.mark.doors
@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("sizes", 3, "unexpected keyword argument 'sizes'"),
        ("size", "big", "`size` is a whole number"),
        ("size", (1, 2, 3), "`size` is one side or (height, width)"),
        ("mean", "half", "`mean` is one finite number"),
        ("std", 0, "`std` is over zero"),
        ("resize", "pad", "`resize` is one of 'crop', 'squash'"),
        ("crop", "all", "`crop` is the share of the picture's side"),
    ],
)
def test_a_value_without_sense_is_told_with_the_model(name, value, told):
    known = {"size": 8, "mean": 0.5, "std": 0.5, name: value}
    with pytest.raises(ModelError, match="net: its inputs cannot be prepared so") as caught:
        Description(tuple(known.items())).preprocess("net")
    assert told in str(caught.value)


@pytest.mark.doors
@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("size = ", "not a TOML file (Invalid value (at end of document))"),
        ("size = 8", "size is not known. [input] takes size, mean, std,"),
        ("[input]\nmaen = 0.5\nsdt = 1", "maen, sdt are not known"),
        ("[output]\nlabel = 'x'", "label is not known. [input] takes"),
        ("input = 3", "input and output are tables. Write [input] and [output]."),
        ("output = ['a']", "input and output are tables"),
        (
            "[output]\nkind = 'softmax'",
            "kind under [output] is one of logits, probabilities, regression, segmentation, detection. Got 'softmax'.",
        ),
        ("[output]\nselect = true", "select under [output] is a key or an index. Got True."),
        ("[output]\nselect = [0]", "select under [output] is a key or an index. Got [0]."),
        ("[output]\nlabels = 3", "labels under [output] is a file's name, or a list of names. Got 3."),
        ("[output]\nlabels = [1, 2]", "labels under [output] is a file's name, or a list of names. Got [1, 2]."),
        ("[output]\nlabels = []", "labels under [output] is a file's name, or a list of names. Got []."),
    ],
)
def test_a_wrong_description_is_told_with_its_file(toml, text, told):
    path = toml(text)
    with pytest.raises(ModelError) as caught:
        read_description(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert told in str(caught.value)


def test_labels_are_stripped_and_keep_their_places(toml):
    path = toml("cat \r\n\r\n  dog, hound\r\n\r\n\r\n", "names.txt")
    assert read_labels(path) == ("cat", "", "dog, hound")


def test_only_line_ends_part_labels(toml):
    assert read_labels(toml("a\u2028b\nc\x0cd\n", "names.txt")) == ("a\u2028b", "c\x0cd")


@pytest.mark.doors
@pytest.mark.parametrize(
    ("content", "told"),
    [(b"", "the file is empty"), (b"\n \n", "the file is empty"), (b"\xff\xfe", "cannot be read as text")],
)
def test_a_file_that_holds_no_labels_is_told(toml, content, told):
    with pytest.raises(ArgumentError, match=told):
        read_labels(toml(content, "names.txt"))


@pytest.mark.doors
def test_a_file_too_large_for_labels_is_not_read(toml):
    path = toml("", "names.txt")
    with path.open("wb") as file:
        file.truncate(16 * 2**20 + 1)
    with pytest.raises(ArgumentError, match="over 16 MiB is too large"):
        read_labels(path)


@pytest.mark.doors
@pytest.mark.parametrize(("name", "why"), [("none.txt", "No such file or directory"), (".", "Is a directory")])
def test_labels_that_are_not_there_are_told(tmp_path, name, why):
    with pytest.raises(ArgumentError, match=f"cannot be read \\({why}\\)"):
        read_labels(tmp_path / Path(name))
    (tmp_path / "model.toml").write_text(f'[output]\nlabels = "{name}"')
    with pytest.raises(ArgumentError, match=why):
        read_description(tmp_path / "model.toml")


@pytest.mark.doors
@pytest.mark.parametrize(
    "name", ["../names.txt", "/dev/zero", "/proc/self/environ", "in/../../names.txt", "link.txt", "a\\u0000b"]
)
def test_a_description_names_no_labels_outside_its_folder(tmp_path, name):
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "names.txt").write_text("cat\ndog\n")
    (folder / "link.txt").symlink_to(tmp_path / "names.txt")
    (folder / "model.toml").write_text(f'[output]\nlabels = "{name}"')
    with pytest.raises(ModelError, match="labels under \\[output\\] is a file in its own folder"):
        read_description(folder / "model.toml")


def test_labels_may_lie_below_the_folder_and_where_the_user_says(tmp_path, monkeypatch):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "names.txt").write_text("cat\n")
    for name in ("in/names.txt", tmp_path / "in" / "names.txt"):
        (tmp_path / "model.toml").write_text(f'[output]\nlabels = "{name}"')
        assert read_description(tmp_path / "model.toml").labels == ("cat",)
    monkeypatch.chdir(tmp_path / "in")
    assert read_labels(Path("../in/names.txt")) == ("cat",)


@pytest.mark.doors
def test_pipes_and_devices_are_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(ArgumentError, match="expected a file, but this is a pipe or a device"):
            read_labels(path)
    (tmp_path / "model.toml").write_text('[output]\nlabels = "pipe"')
    with pytest.raises(ArgumentError, match="expected a file"):
        read_description(tmp_path / "model.toml")

"""What a network's file does not say: how inputs are prepared, what outputs mean. From options or a TOML file.

[input]                       # all of ImagePreprocess: size, mean, std are required for pictures
size = 224
mean = [0.485, 0.456, 0.406]
std = [0.229, 0.224, 0.225]
resize = "crop"
layout = "nhwc"               # where an ONNX file does not show whether it takes channels first (nchw) or last

[output]
labels = "labels.txt"         # one name a line, beside this file; or a list of names
kind = "logits"
select = "logits"             # where the network returns a dict or a tuple
"""

import tomllib
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from stat import S_ISDIR, S_ISREG
from typing import Any, Literal

from pellucid.core.prediction import OutputKind
from pellucid.errors import ArgumentError, ModelError
from pellucid.modalities.image.preprocess import ImagePreprocess
from pellucid.models.told import in_short

__all__ = ["Description", "read_description", "read_labels"]

_MOST_BYTES = 16 * 2**20
_REQUIRED = ("size", "mean", "std")
_KINDS = [kind.value for kind in OutputKind]
_OUTPUT: dict[str, tuple[Callable[[Any], bool], str]] = {
    "labels": (lambda v: isinstance(v, str) or _are_names(v), "a file's name, or a list of names"),
    "kind": (lambda v: v in _KINDS, f"one of {', '.join(_KINDS)}"),
    "select": (lambda v: isinstance(v, str) or type(v) is int, "a key or an index"),
}
"""What [output] takes: each with its test, and in words."""

_LAYOUTS = ("nchw", "nhwc")


@dataclass(frozen=True)
class Description:
    """Settings by name, as far as they are known: of `ImagePreprocess`, and of the outputs. `layout` says how the file
    takes the pictures that are prepared so, if it is ONNX.
    """

    input: tuple[tuple[str, Any], ...] = ()
    labels: tuple[str, ...] | None = None
    kind: Literal["logits", "probabilities", "regression", "segmentation", "detection"] | None = None
    select: str | int | None = None
    layout: Literal["nchw", "nhwc"] | None = None

    def preprocess(self, model: str, *, beside: bool = True) -> ImagePreprocess:
        """How pictures are prepared. `beside` says whether a file can lie beside the model.

        Raises:
            ModelError: something that cannot be guessed was left out, or has no sense; it is named.
        """
        known = dict(self.input)
        missing = [name for name in _REQUIRED if name not in known]
        if missing:
            words = ", ".join(f"{name} = ..." for name in missing)
            or_so = f", or a model.toml beside it with [input] {words}" if beside else ""
            raise ModelError(
                f"{model}: {', '.join(missing)} of its inputs {'is' if len(missing) == 1 else 'are'} not known. Give "
                f"{' '.join(f'--{name}' for name in missing)}{or_so}."
            )
        try:
            return ImagePreprocess(**known)
        except (TypeError, ValueError) as error:
            raise ModelError(f"{model}: its inputs cannot be prepared so. {error}") from error

    def over(self, other: "Description") -> "Description":
        """These settings, and those of `other` where these say nothing."""
        return Description(
            input=tuple({**dict(other.input), **dict(self.input)}.items()),
            labels=other.labels if self.labels is None else self.labels,
            kind=other.kind if self.kind is None else self.kind,
            select=other.select if self.select is None else self.select,
            layout=other.layout if self.layout is None else self.layout,
        )


def read_description(path: Path) -> Description:
    """The description in a TOML file.

    Raises:
        ModelError: not TOML, a name that does not exist, a value of the wrong kind, or labels outside its folder.
        ArgumentError: the file, or that of its labels, cannot be read.
    """
    try:
        data = tomllib.loads(_text(path))
    except tomllib.TOMLDecodeError as error:
        raise ModelError(f"{path}: not a TOML file ({error}).") from error
    given, output = data.pop("input", {}), data.pop("output", {})
    if not isinstance(given, dict) or not isinstance(output, dict):
        raise ModelError(f"{path}: input and output are tables. Write [input] and [output].")
    known = [*(f.name for f in fields(ImagePreprocess)), "layout"]
    wrong = [*data, *(name for name in given if name not in known), *(name for name in output if name not in _OUTPUT)]
    if wrong:
        raise ModelError(
            f"{path}: {', '.join(wrong)} {'is' if len(wrong) == 1 else 'are'} not known. [input] takes "
            f"{', '.join(known)}; [output] {', '.join(_OUTPUT)}."
        )
    for name, value in output.items():
        if not _OUTPUT[name][0](value):
            raise ModelError(f"{path}: {name} under [output] is {_OUTPUT[name][1]}. Got {value!r}.")
    layout = given.pop("layout", None)
    if layout is not None and layout not in _LAYOUTS:
        raise ModelError(f"{path}: layout under [input] is one of {', '.join(_LAYOUTS)}. Got {layout!r}.")
    labels = output.get("labels")
    if isinstance(labels, str):
        labels = read_labels(_beside(path, labels))
    settings = tuple((name, tuple(value) if isinstance(value, list) else value) for name, value in given.items())
    names = None if labels is None else tuple(labels)
    return Description(settings, names, output.get("kind"), output.get("select"), layout)


def read_labels(path: Path) -> tuple[str, ...]:
    """One class name a line, in the order of the outputs.

    Raises:
        ArgumentError: no such file, none that is regular, an empty one, or not text.
    """
    lines = _text(path).split("\n")  # and nothing else, as splitlines() would part at rarer signs
    while lines and not lines[-1].strip():
        lines.pop()
    if not lines:
        raise ArgumentError(f"{path}: expected one class name a line, but the file is empty.")
    return tuple(line.strip() for line in lines)


def _are_names(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(name, str) for name in value)


def _beside(path: Path, labels: str) -> Path:
    """The file of labels that a description names: in its own folder or below, also behind links. A file that came from
    somebody else is not to show what lies elsewhere.
    """
    folder = path.absolute().parent.resolve()
    try:
        file = (folder / labels).resolve()
        inside = file.is_relative_to(folder)
    except (OSError, ValueError):  # no possible name
        inside = False
    if not inside:
        raise ModelError(
            f"{path}: labels under [output] is a file in its own folder. Got {in_short(repr(labels), 100)}. Put it "
            "there, or give it by --labels."
        )
    return path.parent / labels


def _text(path: Path) -> str:
    try:
        kind = path.stat().st_mode
        if not (S_ISREG(kind) or S_ISDIR(kind)):  # a pipe would be waited for; a folder says itself what it is
            raise ArgumentError(f"{path}: expected a file, but this is a pipe or a device.")
        with path.open("rb") as file:
            content = file.read(_MOST_BYTES + 1)  # whatever its size is said to be
        if len(content) > _MOST_BYTES:
            raise ArgumentError(f"{path}: over {_MOST_BYTES // 2**20} MiB is too large for a description.")
        return content.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")  # with a mark that Windows sets
    except OSError as error:
        raise ArgumentError(f"{path}: cannot be read ({error.strerror}).") from error
    except UnicodeDecodeError as error:
        raise ArgumentError(f"{path}: cannot be read as text ({error}).") from error

"""What an ONNX file holds, read before onnxruntime sees it: that it is one, which operators it names, which files.

An ONNX file is a protobuf message. The few fields that matter are read here by their numbers (onnx.proto), so that
neither the `onnx` package nor a session is needed to refuse a file. Nothing in a graph can run code but operators that
somebody registers; weights may lie in other files, which onnxruntime opens by the names that the file gives.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pellucid.errors import ModelError
from pellucid.models.told import listed

__all__ = ["OnnxFile", "read_onnx"]

MOST_BYTES = 4 * 2**30
"""Of a file and those of its weights together. A file alone has 2 GiB at most: protobuf has no longer messages."""

_DOMAINS = {"", "ai.onnx", "ai.onnx.ml", "com.microsoft"}
"""Whose operators onnxruntime brings itself; any other operator would be code of somebody's own."""

MOST_PARTS = 2 * 10**6
"""Of a file: nodes, attributes, tensors and so on. Networks of a billion weights have some hundred thousand."""

_MOST_FIELDS = 2 * 10**7
"""Of a file, also those that are skipped; each takes time."""

_IN_MEMORY = "_ORT_MEM_ADDR_"
"""Stands in the names by which onnxruntime means an address in this process's memory, and no file."""

_Fields = Iterator[tuple[int, "memoryview | int"]]
_LENGTHS = {1: 8, 5: 4}  # the bytes of fixed numbers, by wire type

# Where a message has parts that are searched, by field: the kind of each. Everything else is skipped unread.
_PARTS: dict[str, dict[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node", 11: "attribute"},
    "training": {1: "graph", 2: "graph"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {13: "entry"},
}


@dataclass(frozen=True)
class OnnxFile:
    """A file that may be run: its bytes, the folder of its weights if some lie elsewhere, and the hash of all of it."""

    content: bytes
    folder: Path | None
    fingerprint: str


def read_onnx(path: Path) -> OnnxFile:
    """The file, if it is ONNX and needs no more than onnxruntime and files beside it.

    Raises:
        ModelError: not there, too large, no ONNX, operators of its own, or weights outside its folder.
    """
    content = _content(path)
    try:
        operators, own, external = _searched(memoryview(content))
    except (ValueError, IndexError) as error:
        raise ModelError(f"{path}: no ONNX file, or a damaged one ({error}). Export it again.") from error
    unknown = sorted({f"{domain}.{name}" for domain, name in operators - own if domain not in _DOMAINS})
    if unknown:
        raise ModelError(
            f"{path}: expected operators that onnxruntime has, but it uses {listed(unknown, 5)}. Operators of "
            "one's own are code outside the file and are not loaded. Export it without them, or give a function that "
            "predicts with it: file.py:function."
        )
    files = sorted({_beside(path, location) for location in external})
    if len(content) + sum(file.stat().st_size for file in files) > MOST_BYTES:
        raise ModelError(f"{path}: with its weights over {MOST_BYTES // 2**30} GiB, which is too large to be loaded.")
    digest = hashlib.blake2b(content, digest_size=16)
    for file in files:
        with file.open("rb") as opened:
            while block := opened.read(2**22):
                digest.update(block)
    return OnnxFile(content, path.absolute().parent if files else None, digest.hexdigest())


def _content(path: Path) -> bytes:
    if not path.is_file():
        raise ModelError(f"{path}: there is no such file.")
    if path.stat().st_size > MOST_BYTES:
        raise ModelError(f"{path}: over {MOST_BYTES // 2**30} GiB, which is too large to be loaded.")
    try:
        return path.read_bytes()
    except OSError as error:
        raise ModelError(f"{path}: cannot be read ({error.strerror}).") from error


def _beside(path: Path, location: str) -> Path:
    """The file of weights that is meant; in the file's own folder or below, also behind links."""
    shown = listed([location])
    if _IN_MEMORY in location:
        raise ModelError(
            f"{path}: its weights lie in {shown}, an address in memory and no file. Save it again with its weights "
            "inside."
        )
    folder = path.absolute().parent.resolve()
    try:
        file = (folder / location).resolve()
        inside, there = file.is_relative_to(folder), file.is_file()
    except (OSError, ValueError):  # no possible name
        inside = there = False
    if inside and there:
        return file
    what = "which is not there" if inside else "outside its folder, and such files are not opened"
    raise ModelError(f"{path}: its weights lie in {shown}, {what}. Save it again with its weights inside.")


def _searched(content: memoryview) -> tuple[set[tuple[str, str]], set[tuple[str, str]], set[str]]:
    """The operators (domain, name) that nodes name, those that the file defines by others, and its files of weights."""
    operators, own, external = set(), set(), set()
    counted = _Counted()
    seen: set[int] = set()
    for number, _ in counted.fields(content):
        if number == 7 and number in seen:
            raise ValueError("more than one graph")  # which readers would make one of, each in its way
        seen.add(number)
    if not {1, 7} <= seen:  # the version, and the graph
        raise ValueError("no graph in it")
    waiting = [("model", content)]
    while waiting:  # no recursion: graphs in graphs may be as deep as a hostile file likes
        kind, message = waiting.pop()
        texts: dict[int, str] = {}
        for number, value in counted.fields(message):
            part = _PARTS[kind].get(number) if kind in _PARTS else None
            if part is not None and isinstance(value, memoryview):
                counted.part()
                if len(value):  # there is nothing in an empty one
                    waiting.append((part, value))
            elif isinstance(value, memoryview) and number in _NAMED.get(kind, ()):
                texts[number] = str(value, "utf-8")
        if kind == "node":
            operators.add((texts.get(7, ""), texts.get(4, "")))
        elif kind == "function":
            own.add((texts.get(10, ""), texts.get(1, "")))
        elif kind == "entry" and texts.get(1) == "location":
            external.add(texts.get(2, ""))
    return operators, own, external


_NAMED = {"node": (4, 7), "function": (1, 10), "entry": (1, 2)}
"""The fields that hold names: of an operator and its domain, of a function, and key and value."""


class _Counted:
    """Counts what is read of a file, so that a small one cannot take long."""

    def __init__(self) -> None:
        self._parts = self._fields = 0

    def part(self) -> None:
        self._parts += 1
        if self._parts > MOST_PARTS:
            raise ValueError(f"over {MOST_PARTS} parts")

    def fields(self, message: memoryview) -> _Fields:
        for field in _fields(message):
            self._fields += 1
            if self._fields > _MOST_FIELDS:
                raise ValueError(f"over {_MOST_FIELDS} fields")
            yield field


def _fields(message: memoryview) -> _Fields:
    """The fields of a message: its number, and a whole number or the bytes."""
    at = 0
    while at < len(message):
        begun = at
        key, at = _varint(message, at)
        number, wire = key >> 3, key & 7
        # protobuf reads 32 bits, or fails: what it makes of other forms must not be another field than here
        if not number or key >= 2**32 or (at - begun > 1 and message[at - 1] == 0):
            raise ValueError("a field of no valid number")
        if wire == 0:
            value, at = _varint(message, at)
            yield number, value
            continue
        if wire == 2:
            length, at = _varint(message, at)
        elif wire in _LENGTHS:
            length = _LENGTHS[wire]
        else:
            raise ValueError(f"wire type {wire}")
        if length > len(message) - at:
            raise ValueError("a field beyond the end")
        yield number, message[at : at + length]
        at += length


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise ValueError("a number of more than ten bytes")

"""A network in an ONNX file as a model: onnxruntime gives its outputs, on the processor, and nothing else of it."""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import torch
from jaxtyping import Float
from torch import Tensor

from pellucid.core.card import Cost, Needs
from pellucid.core.checks import check_choice
from pellucid.core.input import Preprocess
from pellucid.core.model import Model
from pellucid.core.output import check_outputs
from pellucid.core.packing import Packing
from pellucid.core.random import Key
from pellucid.errors import ArgumentError, ModelError
from pellucid.models.onnx_screen import read_onnx
from pellucid.models.told import listed, one_line

__all__ = ["OnnxModel"]

_TYPES = {
    "tensor(float)": torch.float32,
    "tensor(float16)": torch.float16,
    "tensor(double)": torch.float64,
    "tensor(int64)": torch.int64,
    "tensor(int32)": torch.int32,
    "tensor(uint8)": torch.uint8,
    "tensor(bool)": torch.bool,
}
_COLOURS = (1, 3)


@dataclass(frozen=True)
class _Place:
    """An input of the file: sizes as declared, None where free, the batch first; `last` says where its channels lie."""

    name: str
    shape: tuple[int | None, ...]
    dtype: torch.dtype
    last: bool = False

    @property
    def features(self) -> tuple[int | None, ...]:
        """The sizes of a row, channels first."""
        return (self.shape[-1], *self.shape[1:-1]) if self.last else self.shape[1:]

    def given(self, part: Tensor) -> Any:
        """The rows as the file takes them."""
        rows = part.movedim(1, -1) if self.last else part
        return rows.to(self.dtype).contiguous().numpy()


class OnnxModel(Model):
    """An `.onnx` file as a model of inputs (B, *features), pictures channels first: its outputs, and no gradients.

    `layout` says how the file takes pictures, "nchw" or "nhwc"; left out, it is read from the declared shape, if one of
    its sides is 1 or 3 channels and the other is not. `select` is the name or index of the outputs where the file has
    several. A file of several inputs takes them as a dict by name, or a tuple. One that was made for a fixed number of
    rows is run in pieces of so many, the last filled up. onnxruntime takes as many threads as torch.

    Raises:
        ModelError: no such file, no ONNX, something in it that is refused, or onnxruntime is not installed.
        ArgumentError: a setting that the file does not allow, or one that it cannot do without.

    Example:
        >>> import tempfile, torch, onnx, pellucid as pl
        >>> from onnx import helper, TensorProto
        >>> x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows", 2]) for name in "xy")
        >>> graph = helper.make_graph([helper.make_node("Neg", ["x"], ["y"])], "negative", [x], [y])
        >>> with tempfile.NamedTemporaryFile(suffix=".onnx") as file:
        ...     opset = [helper.make_opsetid("", 20)]
        ...     onnx.save(helper.make_model(graph, ir_version=10, opset_imports=opset), file.name)
        ...     model = pl.OnnxModel(file.name)
        >>> model.predict(torch.tensor([[1.0, -2.0]])).outputs
        tensor([[-1.,  2.]])
    """

    offers = Needs.SCORES

    def __init__(
        self,
        path: str | Path,
        *,
        preprocess: Preprocess | None = None,
        labels: Sequence[str] | None = None,
        output: Literal["logits", "probabilities", "regression", "segmentation", "detection"] | None = None,
        layout: Literal["nchw", "nhwc"] | None = None,
        select: str | int | None = None,
        micro_batch: int | None = None,
        name: str | None = None,
    ) -> None:
        super().__init__(preprocess=preprocess, labels=labels, output=output, micro_batch=micro_batch)
        if layout is not None:
            check_choice("layout", layout, ("nchw", "nhwc"))
        self.path = Path(path)
        self.name = name or self.path.name
        self._start()
        self.layout, self.select = layout, select
        self._arrange()

    def place(self, x: Tensor) -> Tensor:
        return x.detach().cpu()

    @contextmanager
    def undisturbed(self, key: Key, packing: Packing | None = None) -> Iterator[Self]:
        if self._threads != torch.get_num_threads():
            self._start()
        with super().undisturbed(key, packing) as quiet:
            yield quiet

    def outputs(self, x: Float[Tensor, "b *features"]) -> Float[Tensor, "b *k"]:
        found = [self._piece(part) for part in torch.split(x, self.rows(x))]
        return torch.cat(found).to(x.dtype)

    def fingerprint(self) -> str:
        return self._hash

    def run(self, x: Tensor) -> dict[str, Any]:
        settings = {"select": self._output, "layout": self.layout, "threads": self._threads}
        return {**super().run(x), **settings, "onnxruntime": _runtime().__version__}

    def take_over(self, run: Mapping[str, Any]) -> None:
        super().take_over(run)
        self.select, self.layout = run["select"], run["layout"]
        self._arrange()

    @property
    def input_shapes(self) -> dict[str, tuple[int | None, ...]]:
        """The sizes of a row of each of the file's inputs, channels first; None where a size is free."""
        return {place.name: place.features for place in self._places}

    def _start(self) -> None:
        """A session with as many threads as torch; the file is what it was."""
        runtime = _runtime()
        file = read_onnx(self.path)
        if getattr(self, "_hash", file.fingerprint) != file.fingerprint:
            raise ModelError(f"{self.path}: the file has changed since it was loaded. Load it again.")
        options = runtime.SessionOptions()
        options.intra_op_num_threads = threads = torch.get_num_threads()
        options.inter_op_num_threads = 1
        options.use_deterministic_compute = True
        options.log_severity_level = 4  # what goes wrong is raised
        if file.folder is not None:
            options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(file.folder))
        try:
            self._session = runtime.InferenceSession(file.content, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # of as many classes as there are codes
            raise ModelError(f"{self.path}: onnxruntime {runtime.__version__} cannot run it. {_told(error)}") from error
        self._hash, self._threads = file.fingerprint, threads

    def _arrange(self) -> None:
        """What the file takes and gives, as it is declared there and by the settings."""
        declared = self._session.get_inputs()
        if self.layout is not None and not any(_is_picture(one.shape) for one in declared):
            raise ArgumentError(f"{self.path}: `layout` is for pictures, but no input of the file has four axes.")
        self._places = [self._place_of(one) for one in declared]
        self._fixed = next((place.shape[0] for place in self._places if place.shape[0] is not None), None)
        self._output = self._output_name({one.name: one.type for one in self._session.get_outputs()})

    def _place_of(self, declared: Any) -> _Place:
        if declared.type not in _TYPES:
            raise ModelError(
                f"{self.path}: expected inputs of {', '.join(_TYPES)}, but {listed([declared.name])} takes "
                f"{one_line(declared.type, 60)}."
            )
        shape = tuple(size if isinstance(size, int) else None for size in declared.shape)
        if not shape:
            raise ModelError(
                f"{self.path}: expected inputs that declare their axes, rows first, but {listed([declared.name])} has "
                "none. Export it with a shape, its batch free."
            )
        last = _is_picture(shape) and (self.layout or self._layout(declared.name, shape)) == "nhwc"
        return _Place(declared.name, shape, _TYPES[declared.type], last)

    def _layout(self, name: str, shape: tuple[int | None, ...]) -> str:
        first, last = shape[1] in _COLOURS, shape[3] in _COLOURS
        if first == last:
            declared = " x ".join("?" if size is None else str(size) for size in shape)
            raise ArgumentError(
                f"{self.path}: its input {listed([name])} is {declared}, which does not show where the channels lie. "
                'Say it: layout="nchw" (channels first, as torch exports) or layout="nhwc" (last, as TensorFlow), or '
                "[input] layout in a model.toml beside the file."
            )
        return "nchw" if first else "nhwc"

    def _output_name(self, types: dict[str, str]) -> str:
        names, select = list(types), self.select
        chosen = names[0] if select is None and len(names) == 1 else None
        if isinstance(select, str) and select in names:
            chosen = select
        elif isinstance(select, int) and not isinstance(select, bool) and 0 <= select < len(names):
            chosen = names[select]
        if chosen is None:
            got = "" if select is None else f" Got {select!r}."
            raise ArgumentError(f"{self.path}: `select` is one of its outputs, {listed(names)}.{got}")
        if types[chosen] not in _TYPES:
            raise ModelError(
                f"{self.path}: expected outputs that are a tensor of numbers, but {listed([chosen])} is "
                f"{one_line(types[chosen], 60)}. "
                "Select another, or export it so; for scikit-learn with zipmap=False."
            )
        return chosen

    def _piece(self, x: Tensor) -> Tensor:
        """The outputs of a micro-batch, in pieces of the file's own size if it has one."""
        self.passes += Cost(forward=len(x))
        parts = self._parts(x)
        size = self._fixed or len(x)
        found = []
        for start in range(0, len(x), size):
            rows = torch.arange(start, start + size).clamp(max=len(x) - 1)  # the last row fills up
            given = {place.name: place.given(part[rows]) for place, part in zip(self._places, parts, strict=True)}
            found.append(self._answer(given, size, tuple(x.shape)))
        return torch.cat(found)[: len(x)]

    def _answer(self, given: dict[str, Any], size: int, shape: tuple[int, ...]) -> Tensor:
        try:
            [result] = self._session.run([self._output], given)
        except Exception as error:  # of as many classes as there are codes
            hint = "" if self._fixed or size == 1 else " Was it made for batches of one size? Then declare that size."
            raise ModelError(f"{self.name} failed on a batch of shape {shape}: {_told(error)}{hint}") from error
        outputs = torch.from_numpy(result)
        outputs = outputs[:, None] if outputs.ndim == 1 else outputs
        check_outputs(outputs, size, self.output, self.name)
        return outputs

    def _parts(self, x: Tensor) -> list[Tensor]:
        """The rows of each of the file's inputs, checked."""
        names = [place.name for place in self._places]
        if self.packing is None:
            parts = [x]
        else:
            parts = self.packing.given(x)
            if self.packing.by_name and set(self.packing.names) == set(names):
                by_name = dict(zip(self.packing.names, parts, strict=True))
                parts = [by_name[name] for name in names]
            elif self.packing.by_name:
                parts = []
        if len(parts) != len(names):
            got = (
                "one tensor" if self.packing is None else f"{len(self.packing.names)}: {', '.join(self.packing.names)}"
            )
            raise ArgumentError(f"{self.name} takes {len(names)} inputs, a dict of {listed(names)}, but got {got}.")
        for place, part in zip(self._places, parts, strict=True):
            self._check(place, part)
        return parts

    def _check(self, place: _Place, part: Tensor) -> None:
        if part.is_floating_point() and not place.dtype.is_floating_point:
            kind = str(place.dtype).removeprefix("torch.")
            raise ArgumentError(
                f"{self.name}: its input {listed([place.name])} takes {kind}, which cannot "
                "be explained. Among several inputs give it as whole numbers, and they are held; a file whose only "
                "input is of bytes must be exported with a floating-point input."
            )
        wanted, got = place.features, tuple(part.shape[1:])
        fits = len(wanted) == len(got) and all(size in (None, given) for size, given in zip(wanted, got, strict=True))
        if not fits or math.prod(got) == 0:
            sizes = ", ".join("free" if size is None else str(size) for size in wanted)
            raise ArgumentError(
                f"{self.name}: expected rows of ({sizes}) for its input {listed([place.name])}"
                f"{', channels first' if place.last else ''}, but got {got}."
            )


def _is_picture(shape: Sequence[Any]) -> bool:
    return len(shape) == 4


def _told(error: Exception) -> str:
    """What onnxruntime says, in one line, without its codes and the names of its own source files."""
    text = re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", str(error))
    return one_line(re.sub(r"\S*[/\\]\S+\.(?:cc|cpp|h):\d+\s*", "", text), 500)


def _runtime() -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise ModelError(
            "An .onnx file is run by onnxruntime, which is not installed. Install it: pip install 'pellucid[onnx]'."
        ) from error
    return onnxruntime

"""A model by its name, its file, its address, or the function that builds it or predicts.

Nothing runs that the caller did not ask to run: `file.py:function` and `package.module:function` are the caller's own
code. Files of pickled objects are refused whatever they hold; those of torch.export, ONNX and skops are read before
they are loaded (models/exported.py, onnx_screen.py, sklearn.py).
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from torch import nn

from pellucid.core.card import Needs
from pellucid.core.function_model import FunctionModel
from pellucid.core.model import Model, TorchModel
from pellucid.errors import ArgumentError, FixedShape, ModelError
from pellucid.modalities.image.preprocess import ImagePreprocess
from pellucid.models.description import Description, read_description
from pellucid.models.own_code import Predicts, built, functions_in
from pellucid.models.told import in_short

__all__ = ["DEFAULT", "load"]

DEFAULT = "efficientnet-lite0"
_PICKLES = {".pt", ".pth", ".pkl", ".pickle", ".bin", ".ckpt", ".joblib"}
_CODE = "file.py:function or package.module:function"
_FILES = ".pt2, .onnx or .skops"


def load(
    name: str | Path,
    *,
    description: Description | None = None,
    trust: bool = False,
    device: str | None = None,
    precision: Literal["bfloat16", "auto"] | None = None,
    memory_limit: str | int | None = None,
) -> Model:
    """The embedded default "efficientnet-lite0", "file.py:function", "package.module:function", "program.pt2",
    "model.onnx", "model.skops", or the address of an endpoint that predicts, "http://...".

    A function without arguments returns a torch.nn.Module or a pellucid Model; one of a batch (NumPy) predicts itself.
    `description` says how inputs are prepared; what it leaves out is taken from `<file stem>.toml` or `model.toml`
    beside the file. A skops file takes rows of a table, which nobody prepares. `trust=True` loads files that can run
    code; `device`, `precision` and `memory_limit` are those of TorchModel.

    Raises:
        ModelError: nothing of that name, a file that is refused, or a preprocessing that is not known.
        ArgumentError: a setting that does not fit the model, or a device that is not there.

    Example:
        >>> import pellucid as pl
        >>> pl.load("efficientnet-lite0").labels.short(281)
        'tabby'
    """
    text = str(name)
    given = description or Description()
    run = _Run(device, precision, memory_limit, trust)
    if text == DEFAULT:
        _refuse_settings(DEFAULT, given)
        return _embedded(run)
    if text.lower().startswith(("http://", "https://")):
        return _from_endpoint(text, given, run)
    if "://" in text:
        raise ModelError(
            f"{in_short(repr(text.partition('://')[0]), 60)} addresses are not known: only those of http:// and "
            "https:// are asked. Give one of these, or download the file."
        )
    where, _, function = text.rpartition(":")
    if where.endswith(".py") or (where and function.isidentifier()):
        return _from_function(where, function, given, run)
    file = Path(text)
    match file.suffix.lower():
        case ".pt2":
            return _from_program(file, given, run)
        case ".onnx":
            return _from_onnx(file, given, run)
        case ".skops":
            return _from_skops(file, given, run)
    raise ModelError(_refusal(text))


@dataclass(frozen=True)
class _Run:
    """How a network is run, as TorchModel takes it."""

    device: str | None = None
    precision: Literal["bfloat16", "auto"] | None = None
    memory_limit: str | int | None = None
    trust: bool = False


def _embedded(run: _Run) -> TorchModel:
    from pellucid.models.efficientnet_lite0 import pretrained
    from pellucid.models.imagenet import labels

    # (value - 127) / 128 of 0 .. 255, as the weights were trained; ImageNet's mean and std cost 8 points of accuracy.
    prepare = ImagePreprocess(size=224, mean=127 / 255, std=128 / 255, resize="crop", interpolation="bicubic")
    return TorchModel(
        pretrained(), preprocess=prepare, labels=labels(), output="logits", name=DEFAULT,
        device=run.device, precision=run.precision, memory_limit=run.memory_limit,
    )  # fmt: skip


def _from_function(where: str, function: str, given: Description, run: _Run) -> Model:
    if Path(where).suffix.lower() in _PICKLES or not function.isidentifier():
        raise ModelError(_refusal(where))
    name = f"{where}:{function}"
    found, file = built(where, function)
    if isinstance(found, Model):
        _refuse_settings(name, given, run)
        return found
    known = given.over(_beside(file))
    if isinstance(found, Predicts):
        _refuse_unused(name, run, select=known.select, layout=known.layout)
        prepare = known.preprocess(name)
        return FunctionModel(found.function, preprocess=prepare, labels=known.labels, output=known.kind, name=name)
    if not isinstance(found, nn.Module):
        raise ModelError(
            f"{name}: expected a torch.nn.Module or a pellucid Model, but got {type(found).__name__}. "
            "The function takes no argument and returns the network, or takes a batch and returns its outputs."
        )
    return _described(found, name, known, run)


def _from_endpoint(url: str, given: Description, run: _Run) -> Model:
    from pellucid.models.http import HTTPModel

    model = HTTPModel(url, labels=given.labels, output=given.kind, select=given.select)
    _refuse_unused(model.name, run, layout=given.layout)
    model.preprocess = given.preprocess(model.name, beside=False)
    return model


def _from_onnx(file: Path, given: Description, run: _Run) -> Model:
    from pellucid.models.onnx import OnnxModel

    known = given.over(_beside(file))
    _refuse_unused(str(file), run)
    model = OnnxModel(
        file,
        labels=known.labels,
        output=known.kind,
        layout=known.layout,
        select=known.select,
        name=str(file),
    )
    shapes = list(model.input_shapes.values())
    if known.input or [len(shape) for shape in shapes] == [3]:
        model.preprocess = known.preprocess(str(file))
        if len(shapes) > 1:
            raise ModelError(f"{file}: pictures cannot be read for {len(shapes)} inputs. Pass tensors by name, a dict.")
        _check_shape(str(file), model.preprocess, (None, *shapes[0]))
    return model


def _from_skops(file: Path, given: Description, run: _Run) -> Model:
    from pellucid.models.sklearn import SklearnModel, read_skops

    known = given.over(_beside(file))
    unused = {**dict(known.input), "kind": known.kind, "select": known.select, "layout": known.layout}
    _refuse_unused(str(file), replace(run, trust=False), **unused)
    return SklearnModel(read_skops(file, trust=run.trust), labels=known.labels)


def _from_program(file: Path, given: Description, run: _Run) -> TorchModel:
    from pellucid.models.exported import check_dynamic_batch, read_program

    place = TorchModel(  # refuses a device that is not there, or a limit that is none, before the file is read
        nn.Identity(), device=run.device, memory_limit=run.memory_limit
    ).device
    program = read_program(file, trust=run.trust, device=place)
    check_dynamic_batch(program)
    known = given.over(_beside(file))
    _check_shape(str(file), known.preprocess(str(file)), program.input_shape)
    model = _described(program.network, str(file), known, run)
    if not program.has_modules:
        model.offers &= ~(Needs.MODULES | Needs.ACTIVATIONS)
    return model


def _described(net: nn.Module, name: str, known: Description, run: _Run) -> TorchModel:
    if known.layout is not None:
        raise ArgumentError(
            f"{name}: `layout` is of .onnx files; a network of torch takes channels first. Leave it out."
        )
    return TorchModel(
        net,
        preprocess=known.preprocess(name),
        labels=known.labels,
        output=known.kind,
        select=known.select,
        device=run.device,
        precision=run.precision,
        memory_limit=run.memory_limit,
        name=name,
    )


def _refuse_settings(name: str, given: Description, run: _Run | None = None) -> None:
    """A model that knows its preprocessing would leave other settings unused."""
    settings = {**dict(given.input), **{key: value for key, value in vars(given).items() if key != "input"}}
    how = {key: value for key, value in vars(run or _Run()).items() if key != "trust"}  # of files, if they need it
    unused = [key for key, value in {**settings, **how}.items() if value is not None]
    if unused:
        raise ArgumentError(
            f"{name} brings its own {', '.join(unused)}. Leave out what was given: it would not be used."
        )


def _refuse_unused(name: str, run: _Run, **settings: Any) -> None:
    """A model that is known by its outputs only is run elsewhere, and leaves these settings unused."""
    given = {**vars(run), **settings}
    unused = [key for key, value in given.items() if value is not None and value is not False]
    if unused:
        raise ArgumentError(f"{name} takes no {', '.join(unused)}. Leave out what was given: it would not be used.")


def _beside(file: Path | None) -> Description:
    """The description next to the model's file."""
    for candidate in (file.with_suffix(".toml"), file.with_name("model.toml")) if file else ():
        if candidate.is_file():
            return read_description(candidate)
    return Description()


def _check_shape(name: str, prepare: ImagePreprocess, shape: tuple[int | None, ...]) -> None:
    """Raises ModelError unless the program takes what the preprocessing gives."""
    if len(shape) != 4:
        raise ModelError(
            f"{name}: expected a program for pictures (batch, channels, height, width), but its inputs have "
            f"{len(shape)} dimensions."
        )
    planes = 1 if prepare.channels == "gray" else 3
    if shape[1] not in (None, planes):
        raise FixedShape(
            f"{name}: exported for {shape[1]} channels, but the preprocessing gives {planes}. A model.toml beside it "
            'says otherwise with [input] channels = "gray", "rgb" or "bgr".'
        )
    sides = prepare.size if isinstance(prepare.size, tuple) else (prepare.size, prepare.size)
    if any(expected not in (None, given) for expected, given in zip(shape[2:], sides, strict=True)):
        size = "x".join(str(expected or given) for expected, given in zip(shape[2:], sides, strict=True))
        raise FixedShape(
            f"{name}: exported for inputs of {size} (height x width), but the preprocessing gives "
            f"{sides[0]}x{sides[1]}. Give --size {size}, or export it with dynamic height and width."
        )


def _refusal(text: str) -> str:
    file = Path(text)
    suffix = file.suffix.lower()
    if suffix in _PICKLES:
        return (
            f"{text}: pickled modules and checkpoints can run code on loading and are refused. Write a function that "
            f"builds the network and loads its state dict with torch.load(path, weights_only=True), and give {_CODE}; "
            "or export the network with torch.export.save to a .pt2 file. For an estimator of scikit-learn: "
            "skops.io.dump to a .skops file."
        )
    if not text or not file.exists():
        return f"There is no model {text!r}. Expected {DEFAULT}, {_CODE}, a {_FILES} file that exists, or http://... ."
    if suffix == ".py":
        names = functions_in(file)
        has = f" It has {', '.join(names)}." if names else ""
        name = f"{text}:{names[0] if names else 'build'}"
        return f"{text}: name the function that builds the network, or that predicts, {name}.{has}"
    what = "a folder" if file.is_dir() else f"a {suffix}" if suffix else "a file without a suffix"
    return f"{text}: expected {_CODE}, or a {_FILES} file, but this is {what}."

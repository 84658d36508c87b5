"""A model by its name, its file or the function that builds it. Nothing runs that the caller did not ask to run.

`file.py:function` and `package.module:function` are the caller's own code and are run. Files of pickled objects are
refused whatever they hold; a torch.export program is read before it is loaded (models/exported.py).
"""

import ast
import importlib
import importlib.util
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from torch import nn

from pellucid.core.card import Needs
from pellucid.core.model import Model, TorchModel
from pellucid.errors import ArgumentError, FixedShape, ModelError, PellucidError
from pellucid.modalities.image.preprocess import ImagePreprocess
from pellucid.models.description import Description, read_description

__all__ = ["DEFAULT", "load"]

DEFAULT = "efficientnet-lite0"
_PICKLES = {".pt", ".pth", ".pkl", ".pickle", ".bin", ".ckpt", ".joblib"}
_CODE = "file.py:function or package.module:function"


def load(
    name: str | Path,
    *,
    description: Description | None = None,
    trust: bool = False,
    device: str | None = None,
    precision: Literal["bfloat16", "auto"] | None = None,
    memory_limit: str | int | None = None,
) -> Model:
    """The embedded default "efficientnet-lite0", "file.py:function", "package.module:function" or "program.pt2".

    A function takes no argument and returns a torch.nn.Module or a pellucid Model. For a network, `description` says
    how its inputs are prepared; what it leaves out is taken from `<file stem>.toml` or `model.toml` beside the file.
    `trust=True` loads programs whose files can run code; `device`, `precision` and `memory_limit` are those of
    TorchModel.

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
    run = _Run(device, precision, memory_limit)
    if text == DEFAULT:
        _refuse_settings(DEFAULT, given)
        return _embedded(run)
    where, _, function = text.rpartition(":")
    if where.endswith(".py") or (where and function.isidentifier()):
        return _from_function(where, function, given, run)
    file = Path(text)
    if file.suffix.lower() == ".pt2":
        return _from_program(file, given, trust, run)
    raise ModelError(_refusal(text))


@dataclass(frozen=True)
class _Run:
    """How a network is run, as TorchModel takes it."""

    device: str | None = None
    precision: Literal["bfloat16", "auto"] | None = None
    memory_limit: str | int | None = None


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
    built, file = _built(where, function)
    if isinstance(built, Model):
        _refuse_settings(name, given, run)
        return built
    if not isinstance(built, nn.Module):
        raise ModelError(
            f"{name}: expected a torch.nn.Module or a pellucid Model, but got {type(built).__name__}. "
            "The function takes no argument and returns the network."
        )
    return _described(built, name, given.over(_beside(file)), run)


def _from_program(file: Path, given: Description, trust: bool, run: _Run) -> TorchModel:
    from pellucid.models.exported import check_dynamic_batch, read_program

    place = TorchModel(  # refuses a device that is not there, or a limit that is none, before the file is read
        nn.Identity(), device=run.device, memory_limit=run.memory_limit
    ).device
    program = read_program(file, trust=trust, device=place)
    check_dynamic_batch(program)
    known = given.over(_beside(file))
    _check_shape(str(file), known.preprocess(str(file)), program.input_shape)
    model = _described(program.network, str(file), known, run)
    if not program.has_modules:
        model.offers &= ~(Needs.MODULES | Needs.ACTIVATIONS)
    return model


def _described(net: nn.Module, name: str, known: Description, run: _Run) -> TorchModel:
    return TorchModel(
        net,
        preprocess=known.preprocess(name),
        labels=known.labels,
        output=known.kind,  # type: ignore[arg-type]  # checked by TorchModel
        select=known.select,
        device=run.device,
        precision=run.precision,
        memory_limit=run.memory_limit,
        name=name,
    )


def _refuse_settings(name: str, given: Description, run: _Run | None = None) -> None:
    """A model that knows its preprocessing would leave other settings unused."""
    settings = {**dict(given.input), "labels": given.labels, "kind": given.kind, "select": given.select}
    unused = [key for key, value in {**settings, **vars(run or _Run())}.items() if value is not None]
    if unused:
        raise ArgumentError(
            f"{name} brings its own {', '.join(unused)}. Leave out what was given: it would not be used."
        )


def _beside(file: Path | None) -> Description:
    """The description next to the model's file."""
    for candidate in (file.with_suffix(".toml"), file.with_name("model.toml")) if file else ():
        if candidate.is_file():
            return read_description(candidate)
    return Description()


def _built(where: str, function: str) -> tuple[Any, Path | None]:
    """What the function returns (a network or Model of that name is taken as it is), and the file it stands in."""
    path = Path(where).absolute() if where.endswith(".py") else None
    if path and not path.is_file():
        raise ModelError(f"{where}: there is no such file.")
    with _importing_from(path.parent if path else None):
        try:
            module = _run_file(path) if path else importlib.import_module(where)
        except (Exception, SystemExit) as error:
            raise ModelError(f"{where} cannot be imported: {_told(error, path)}") from error
        file = Path(origin) if (origin := getattr(module, "__file__", None)) else None
        build: Callable[[], Any] | None = getattr(module, function, None)
        if isinstance(build, nn.Module | Model):
            return build, file
        if not callable(build):
            raise ModelError(f"{where} has no function {function!r}. It has {', '.join(_own(module)) or 'none'}.")
        try:
            return build(), file
        except PellucidError:
            raise
        except (Exception, SystemExit) as error:
            raise ModelError(f"{where}:{function} failed with {_told(error, file)}") from error


@contextmanager
def _importing_from(folder: Path | None) -> Iterator[None]:
    """A file may import its neighbours, as if it were run as a script; a module may lie in the working directory."""
    place = str(folder or Path.cwd())
    sys.path.insert(0 if folder else len(sys.path), place)
    try:
        yield
    finally:
        if place in sys.path:
            sys.path.remove(place)


def _run_file(path: Path) -> ModuleType:
    name = path.stem
    while name in sys.modules and getattr(sys.modules[name], "__file__", None) != str(path):
        name += "_"  # "torch.py" and its like must not displace a module that others use
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError("not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _told(error: BaseException, file: Path | None) -> str:
    """An error of the user's code, and the line of the file where it came about."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(file)]
    return f"{type(error).__name__}: {error}" + (f" ({file and file.name}, line {lines[-1]})" if lines else "")


def _own(module: ModuleType) -> list[str]:
    own = ((n, value) for n, value in vars(module).items() if callable(value) and not n.startswith("_"))
    return [n for n, value in own if getattr(value, "__module__", None) == module.__name__][:10]


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
            "or export the network with torch.export.save to a .pt2 file."
        )
    if not text or not file.exists():
        return f"There is no model {text!r}. Expected {DEFAULT}, {_CODE}, or a .pt2 file that exists."
    if suffix == ".py":
        names = _functions_in(file)
        has = f" It has {', '.join(names)}." if names else ""
        return f"{text}: name the function that builds the network, {text}:{names[0] if names else 'build'}.{has}"
    what = "a folder" if file.is_dir() else f"a {suffix}" if suffix else "a file without a suffix"
    return f"{text}: expected {_CODE} or a .pt2 program, but this is {what}."


def _functions_in(file: Path) -> list[str]:
    """The functions of the file that can be called without arguments, read without running it."""
    try:
        tree = ast.parse(file.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return []
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef) and not node.name.startswith("_")]
    return [node.name for node in functions if not _required(node.args)][:10]


def _required(arguments: ast.arguments) -> bool:
    positional = len(arguments.posonlyargs) + len(arguments.args) - len(arguments.defaults)
    return positional > 0 or None in arguments.kw_defaults

"""A model by its name, its file or the function that builds it. Nothing runs that the caller did not ask to run.

`file.py:function` and `package.module:function` are the caller's own code and are run. Files of pickled objects are
refused whatever they hold; a torch.export program is read before it is loaded (models/exported.py).
"""

import ast
import importlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from pellucid.core.model import Model, TorchModel
from pellucid.errors import FixedShape, ModelError, PellucidError
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
) -> Model:
    """The embedded default "efficientnet-lite0", "file.py:function", "package.module:function" or "program.pt2".

    A function takes no argument and returns a torch.nn.Module or a pellucid Model. For a network, `description` says
    how its inputs are prepared; what it leaves out is taken from `<file stem>.toml` or `model.toml` beside the file.
    `trust=True` loads programs whose files can run code; `device` is where the network runs.

    Raises:
        ModelError: nothing of that name, a file that is refused, or a preprocessing that is not known.

    Example:
        >>> import pellucid as pl
        >>> pl.load("efficientnet-lite0").labels.short(281)
        'tabby'
    """
    text = str(name)
    given = description or Description()
    if text == DEFAULT:
        return _embedded(device)
    path, _, function = text.rpartition(":")
    if path and function.isidentifier():
        built = _build(path, function)
        if isinstance(built, Model):
            return built
        return _described(built, text, given.over(_beside(Path(path))), device)
    file = Path(text)
    if file.suffix.lower() == ".pt2":
        from pellucid.models.exported import read_program

        program = read_program(file, trust=trust)
        model = _described(program.network, text, given.over(_beside(file)), device)
        _check_size(model, program.input_shape, text)
        return model
    raise ModelError(_refusal(text, file))


def _embedded(device: str | None) -> TorchModel:
    from pellucid.modalities.image.preprocess import ImagePreprocess
    from pellucid.models.efficientnet_lite0 import pretrained
    from pellucid.models.imagenet import labels

    # (value - 127) / 128 of 0 .. 255, as the weights were trained; ImageNet's mean and std cost 8 points of accuracy.
    prepare = ImagePreprocess(size=224, mean=127 / 255, std=128 / 255, resize="crop", interpolation="bicubic")
    return TorchModel(pretrained(), preprocess=prepare, labels=labels(), output="logits", device=device, name=DEFAULT)


def _described(net: object, name: str, known: Description, device: str | None) -> TorchModel:
    if not isinstance(net, nn.Module):
        raise ModelError(
            f"{name}: expected a torch.nn.Module or a pellucid Model, but got {type(net).__name__}. "
            "The function takes no argument and returns the network."
        )
    return TorchModel(
        net,
        preprocess=known.preprocess(name),
        labels=known.labels,
        output=known.kind,  # type: ignore[arg-type]  # checked by TorchModel
        select=known.select,
        device=device,
        name=name,
    )


def _beside(path: Path) -> Description:
    for candidate in (path.with_suffix(".toml"), path.with_name("model.toml")):
        if candidate.is_file():
            return read_description(candidate)
    return Description()


def _build(where: str, function: str) -> Any:
    if where.endswith(".py"):
        path = Path(where)
        if not path.is_file():
            raise ModelError(f"{where}: there is no such file.")
        module = _run_file(path)
    else:
        try:
            module = importlib.import_module(where)
        except Exception as error:
            raise ModelError(f"{where}: importing it failed with {type(error).__name__}: {error}") from error
    build: Callable[[], Any] | None = getattr(module, function, None)
    if not callable(build):
        names = [n for n, value in vars(module).items() if callable(value) and not n.startswith("_")]
        raise ModelError(f"{where} has no function {function!r}. It has {', '.join(names[:10]) or 'none'}.")
    try:
        return build()
    except PellucidError:
        raise
    except Exception as error:
        raise ModelError(f"{where}:{function} failed with {type(error).__name__}: {error}") from error


def _run_file(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ModelError(f"{path}: not a Python file.")
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault(path.stem, module)  # dataclasses and pickling look their module up
    # The file may import its neighbours, as it could if it were run as a script.
    sys.path.insert(0, str(path.parent.resolve()))
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise ModelError(f"{path}: running it failed with {type(error).__name__}: {error}") from error
    finally:
        sys.path.remove(str(path.parent.resolve()))
    return module


def _check_size(model: TorchModel, shape: tuple[int | None, ...], name: str) -> None:
    prepare = model.preprocess
    size = getattr(prepare, "size", None)
    sides = size if isinstance(size, tuple) else (size, size)
    for expected, given in zip(shape[2:], sides, strict=False):
        if expected is not None and expected != given:
            raise FixedShape(
                f"{name}: exported for inputs of {' x '.join(map(str, shape[2:]))}, but the preprocessing gives "
                f"{sides[0]} x {sides[1]}. Give --size {shape[2]}, or export it with dynamic height and width."
            )


def _refusal(text: str, file: Path) -> str:
    suffix = file.suffix.lower()
    if suffix == ".py":
        return f"{text}: name the function that builds the network, {text}:{_function_in(file)}."
    if suffix in _PICKLES:
        return (
            f"{text}: pickled modules and checkpoints can run code on loading and are refused. Write a function that "
            f"builds the network and loads its state dict with torch.load(path, weights_only=True), and give {_CODE}; "
            "or export the network with torch.export.save to a .pt2 file."
        )
    if file.exists():
        return f"{text}: expected {_CODE} or a .pt2 program, but this is a {suffix or 'file without a suffix'}."
    return f"There is no model {text!r}. Expected {DEFAULT}, {_CODE}, or a .pt2 file that exists."


def _function_in(file: Path) -> str:
    """A likely function of the file, read without running it."""
    try:
        tree = ast.parse(file.read_text("utf-8"))
    except (OSError, SyntaxError, ValueError):
        return "build"
    return next((node.name for node in tree.body if isinstance(node, ast.FunctionDef)), "build")

"""Code of the caller's own, `file.py:function` or `package.module:function`: found, run, and its errors told."""

import ast
import functools
import importlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from pellucid.core.model import Model
from pellucid.errors import ModelError, PellucidError

__all__ = ["Predicts", "built", "functions_in"]


@dataclass(frozen=True)
class Predicts:
    """A function of a batch, which is the model itself."""

    function: Callable[[Any], Any]


def built(where: str, function: str) -> tuple[Any, Path | None]:
    """What the function returns, and the file it stands in. A function of one argument predicts and is not called; a
    network or Model of that name is taken as it is.

    Raises:
        ModelError: there is no such function, or it fails.
    """
    path = Path(where).absolute() if where.endswith(".py") else None
    if path and not path.is_file():
        raise ModelError(f"{where}: there is no such file.")
    with _importing_from(path.parent if path else None):
        try:
            module = _run_file(path) if path else importlib.import_module(where)
        except (Exception, SystemExit) as error:
            raise ModelError(f"{where} cannot be imported: {_told(error, path)}") from error
        file = Path(origin) if (origin := getattr(module, "__file__", None)) else None
        build: Callable[..., Any] | None = getattr(module, function, None)
        if isinstance(build, nn.Module | Model):
            return build, file
        if not callable(build):
            raise ModelError(f"{where} has no function {function!r}. It has {', '.join(_own(module)) or 'none'}.")
        if not inspect.isclass(build) and _takes(build) == 1:
            return Predicts(_with_neighbours(build, path.parent if path else None)), file
        try:
            return build(), file
        except PellucidError:
            raise
        except (Exception, SystemExit) as error:
            raise ModelError(f"{where}:{function} failed with {_told(error, file)}") from error


def _takes(function: Callable[..., Any]) -> int:
    """How many arguments by place the function cannot do without."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (ValueError, TypeError):  # of C, and without a signature
        return 0
    by_place = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return sum(one.kind in by_place and one.default is inspect.Parameter.empty for one in parameters)


def _with_neighbours(function: Callable[[Any], Any], folder: Path | None) -> Callable[[Any], Any]:
    """The function, which may also import its neighbours when it is called."""

    @functools.wraps(function)
    def predict(rows: Any) -> Any:
        with _importing_from(folder):
            return function(rows)

    return predict


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


def functions_in(file: Path) -> list[str]:
    """The functions of the file that build or predict, those that build first; read without running it."""
    try:
        tree = ast.parse(file.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return []
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef) and not node.name.startswith("_")]
    taken = [(_required(node.args), node.name) for node in functions if None not in node.args.kw_defaults]
    return [name for wanted in (0, 1) for count, name in taken if count == wanted][:10]


def _required(arguments: ast.arguments) -> int:
    return len(arguments.posonlyargs) + len(arguments.args) - len(arguments.defaults)

"""Programs of `torch.export` (`.pt2`), loaded for explanation without running anything hidden in the file."""

import copy
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import fx, nn
from torch._ops import OpOverload
from torch.export import ExportedProgram
from torch.export.passes import move_to_device_pass
from torch.export.unflatten import UnflattenedModule
from torch.utils import _pytree as pytree

from pellucid.errors import FixedShape, ModelError, UntrustedModel
from pellucid.models.pt2_screen import Refused, screened_copy

__all__ = ["EXPORT_LINE", "Exported", "check_dynamic_batch", "read_program"]

EXPORT_LINE = 'torch.export.export(net.eval(), (x,), dynamic_shapes=({0: torch.export.Dim("batch")},))'
"""How to export a network that can be explained, with an `x` of two inputs or more."""


@dataclass(frozen=True)
class Exported:
    """A program ready for autograd. `None` in `input_shape` is a free size; `batches` the fewest and most inputs.

    `has_modules` tells whether torch could give the modules of the original back.
    """

    network: nn.Module
    input_shape: tuple[int | None, ...]
    batches: tuple[int, int | None] = (1, None)
    has_modules: bool = True


@contextmanager
def _quiet() -> Iterator[None]:
    """Torch's programs hold objects of a class that torch deprecates, and warns of when it copies them."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"`isinstance\(treespec, LeafSpec\)` is deprecated", FutureWarning)
        yield


class _Program(nn.Module):
    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        twin = memo[id(self)] = type(self).__new__(type(self))
        with _quiet():
            vars(twin).update({name: copy.deepcopy(value, memo) for name, value in self._copied().items()})
        return twin

    def _copied(self) -> dict[str, Any]:
        return vars(self)


class _Modules(_Program, UnflattenedModule):
    """A program with the modules of the network that was exported."""

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        twin = super().__deepcopy__(memo)
        twin.input_placeholders = twin.graph.find_nodes(op="placeholder")
        return twin

    def _copied(self) -> dict[str, Any]:
        # But for a wrapped method, which would keep the original's weights, and nodes, which only graphs can copy.
        return {k: v for k, v in vars(self).items() if k not in ("process_forward_inputs", "input_placeholders")}


class _Flat(_Program):
    """A program that torch cannot take apart into modules. Torch's own refuses eval(), which changes nothing here."""

    def __init__(self, flat: nn.Module) -> None:
        super().__init__()
        self.flat = flat

    def forward(self, x: torch.Tensor) -> Any:
        return self.flat(x)

    def train(self, mode: bool = True) -> "_Flat":
        self.training = mode
        return self


def read_program(path: Path, *, trust: bool = False, device: torch.device | str = "cpu") -> Exported:
    """The network of a `.pt2` archive, on `device`. Read it again to move it: a program names devices in its graph."""
    _check_kind(path)
    try:
        program = torch.export.load(path if trust else screened_copy(path))
        if trust or torch.device(device) != torch.device("cpu"):
            program = move_to_device_pass(program, device)
        network = _network(program)
    except Refused as refused:
        raise UntrustedModel(
            f"{path}: {refused}. Expected only what torch.export.save writes: tensors as bytes, and a graph of ATen"
            " operators. If you know who made the file, trust=True (--trust-model) loads it anyhow."
        ) from None
    except Exception as error:  # a damaged file fails anywhere in torch
        raise ModelError(
            f"{path}: damaged, or not for torch {torch.__version__}. Export it again. {type(error).__name__}: {error}"
        ) from error
    shape, batches = _inputs(program, path)
    _check_inference(program, path)
    return Exported(network.eval(), shape, batches, has_modules=isinstance(network, _Modules))


def check_dynamic_batch(exported: Exported) -> None:
    """Noisy copies of one input go through the network together, as many as memory takes, so the batch must be free."""
    size = exported.input_shape[0] if exported.input_shape else 0
    if size is not None or exported.batches[0] > 1:
        got = f"batches of {exported.batches[0]} or more" if size is None else f"batches of {size}"
        raise FixedShape(
            f"Expected a program for batches of any size, got one for {got}. Export it again, with an x of two or more"
            f" inputs: {EXPORT_LINE}"
        )


def _check_kind(path: Path) -> None:
    """Raises `ModelError` for a file that is something else, which people try."""
    if not path.is_file():
        raise ModelError(f"Expected a .pt2 file of torch.export.save, got {path}, which is no file")
    names: list[str] = []
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
        inner = {name.partition("/")[2] for name in names}
        if "archive_format" in inner or "serialized_exported_program.json" in names:
            return
        what = "a TorchScript module" if "constants.pkl" in inner else "a pickled module or state dict"
        what = what if "data.pkl" in inner else "a zip archive of something else"
    except (zipfile.BadZipFile, OSError) as error:
        with path.open("rb") as file:
            start = file.read(2)
        what = "a pickled module or state dict" if start[:1] == b"\x80" else f"no archive, or a truncated one ({error})"
    raise ModelError(
        f"Expected a .pt2 file of torch.export.save, got {path}: {what}. A pickled module can run code on load and is"
        " refused; export it with torch.export.save, or give the code that builds it: --model file.py:function"
    )


def _inputs(program: ExportedProgram, path: Path) -> tuple[tuple[int | None, ...], tuple[int, int | None]]:
    """The shape of the one input, and the limits of its batch."""
    names = program.graph_signature.user_inputs
    value = next((node.meta["val"] for node in program.graph.nodes if node.name in names), None)
    if program.call_spec.in_spec != pytree.tree_structure(((0,), {})) or not isinstance(value, torch.Tensor):
        raise ModelError(
            f"{path}: expected a program of one tensor, given by position, got {len(names)} inputs as"
            f" {program.call_spec.in_spec}. Export a module whose forward takes x and supplies the rest"
        )
    sizes: tuple[Any, ...] = tuple(value.shape)  # numbers, and symbols for what is free
    shape = tuple(size if isinstance(size, int) else None for size in sizes)
    if not shape or shape[0] is not None:
        return shape, (shape[0] or 1, shape[0]) if shape else (1, None)
    limits = program.range_constraints.get(sizes[0].node.expr)
    fewest = int(limits.lower) if limits and limits.lower > 2 else 1  # torch writes 2 for 1, and does not check it
    return shape, (fewest, int(limits.upper) if limits and limits.upper.is_Integer else None)


def _check_inference(program: ExportedProgram, path: Path) -> None:
    graphs = [module.graph for module in program.graph_module.modules() if isinstance(module, fx.GraphModule)]
    for node in (node for graph in graphs for node in graph.nodes):
        if not isinstance(node.target, OpOverload):
            continue
        names = [argument.name for argument in node.target._schema.arguments]  # noqa: SLF001  # the only place of names
        given = dict(zip(names, node.args, strict=False)) | node.kwargs
        training = given.get("train") is True or given.get("training") is True or bool(given.get("dropout_p"))
        # Without running statistics, a batch norm uses those of the batch in evaluation too.
        if training and not ("batch_norm" in node.target.name() and given.get("running_mean") is None):
            raise ModelError(
                f"{path}: expected a program for inference, got one exported in training mode ({node.name} is active),"
                f" whose answers vary. Export net.eval(): {EXPORT_LINE}"
            )


def _network(program: ExportedProgram) -> nn.Module:
    """With the modules of the original, for methods that look inside, where torch can tell them apart."""
    with _quiet():
        try:
            network = torch.export.unflatten(program)
        except Exception:  # noqa: BLE001  # in as many ways as there are graphs; `has_modules` tells
            return _Flat(program.module())
    network.__class__ = _Modules
    return network

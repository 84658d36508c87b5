"""What of a `.pt2` archive may reach torch: a copy in memory, made only of what is allowed here.

`torch.export.load` trusts its file: it unpickles sample inputs, odd tensors and objects, hands symbolic sizes to
sympy's `eval`, turns names into Python source, imports the types that containers name and loads compiled libraries.
The copy holds tensors as bytes and the graph as JSON, both written anew, so that torch reads what was checked. That
keeps code out. How much memory and time the program's own operators take is still up to its author.
"""

import ast
import io
import json
import re
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch._ops import OpOverload
from torch.export.pt2_archive import PT2ArchiveWriter

__all__ = ["Refused", "screened_copy"]

_ENTRIES, _JSON_BYTES, _SIZE_CHARACTERS = 100_000, 64 << 20, 2_000
_GRAPH = "models/model.json"
_TENSORS = {"data/weights": "model_weights_config.json", "data/constants": "model_constants_config.json"}
_RECORDS = (
    r"archive_format|archive_version|byteorder|(\.data/)?version|\.data/serialization_id|models/model\.json"
    r"|data/weights/(model_weights_config\.json|weight_\d+)|data/constants/(model_constants_config\.json|tensor_\d+)"
    r"|data/sample_inputs/model\.pt|extra/.*"  # these two are ordinary, and are not copied
)

_IDENTIFIER = r"[A-Za-z_]\w*"
_MODULE = r"[\w -]+(@\d+)?(\.[\w -]+(@\d+)?)*"
_SCOPE = rf"[\w.@' -]*,({_MODULE})?,[\w.<>@\[\]', ]*"
_NUMBER = r"-?Infinity|NaN"
_SYMBOL = r"[a-z]+\d{1,5}"
# What a field may say. One that is not here, nor in `_text`, may hold numbers only. Names end up in generated source.
_TEXTS = {
    "name": rf"({_IDENTIFIER})?",
    "as_name": _IDENTIFIER,
    "user_input_name": _IDENTIFIER,
    "forward_arg_names": _IDENTIFIER,
    "fqn": rf"({_MODULE})?",
    "parameter_name": _MODULE,
    "buffer_name": _MODULE,
    "tensor_constant_name": _MODULE,
    "nn_module_stack": rf"{_SCOPE}(;{_SCOPE})*",
    "path_name": r"(weight|tensor)_\d+",
    "verifiers": r"ATEN|TRAINING",
    "torch_version": r"[\w.+<=-]*",
    "as_float": _NUMBER,
    "as_floats": _NUMBER,
}
_KEYS = {"config": _MODULE, "range_constraints": _SYMBOL}  # elsewhere an identifier
_LEFT_OUT: dict[str, Any] = {"guards_code": [], "treespec_namedtuple_fields": {}}


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# The arguments of operators that may be a text. `filename` must never be one: `aten.from_file` creates files.
_SPOKEN = _words("""
    approximate assert_msg driver equation indexing interpolation mode norm ord pad_mode padding padding_side reduce
    rounding_mode side UPLO""")
_PLAIN = _words("""
    _operator.add _operator.and_ _operator.eq _operator.floordiv _operator.ge _operator.getitem _operator.gt
    _operator.le _operator.lshift _operator.lt _operator.mod _operator.mul _operator.ne _operator.neg _operator.or_
    _operator.pos _operator.pow _operator.rshift _operator.sub _operator.truediv math.trunc
    torch.sym_float torch.sym_int torch.sym_ite torch.sym_max torch.sym_min torch.sym_not torch.sym_sqrt torch.sym_sum
    torch.ops.higher_order.wrap_with_autocast torch.ops.higher_order.wrap_with_set_grad_enabled""")
# Private operators check their arguments less: only those of the core set, and these, which exporting writes.
_PRIVATE = _words("""
    __and__ __lshift__ __or__ __rshift__ __xor__ _assert_async _assert_scalar _assert_tensor_metadata _conj
    _convolution _fft_c2c _functional_assert_async _functional_assert_scalar _fused_rms_norm
    _native_batch_norm_legit_functional _prelu_kernel _safe_softmax _scaled_dot_product_efficient_attention
    _scaled_dot_product_flash_attention _scaled_dot_product_flash_attention_for_cpu _trilinear _unsafe_view
    _upsample_bicubic2d_aa _upsample_bilinear2d_aa _upsample_nearest_exact1d _upsample_nearest_exact2d
    _upsample_nearest_exact3d _weight_norm _weight_norm_interface""")
_PACKED = ("cudnn_", "fbgemm_", "miopen_", "mkldnn_", "mps_", "quantized_")  # some read pointers out of tensors
_FUNCTIONS = _words("""
    Abs Add And CeilDiv CeilToInt CleanDiv Equality Float FloatPow FloatTrueDiv FloorDiv FloorToInt GreaterThan
    Identity IntTrueDiv Integer IsNonOverlappingAndDenseIndicator LShift LessThan Max Min Mod ModularIndexing Mul Not
    Or Pow PowByNatural PythonMod RShift Rational RoundDecimal RoundToInt StrictGreaterThan StrictLessThan Symbol
    ToFloat TruncToFloat TruncToInt Unequality Where ceiling false floor true""")
_ASSUMPTIONS = _words("finite integer negative nonnegative nonzero positive precision real zero")
_SYNTAX = (
    *(ast.Expression, ast.Load, ast.BinOp, ast.Add, ast.Sub, ast.Mult, ast.Div, ast.FloorDiv, ast.Mod, ast.Pow),
    *(ast.UnaryOp, ast.USub, ast.Compare, ast.Eq, ast.NotEq, ast.Lt, ast.LtE, ast.Gt, ast.GtE),
)


class Refused(Exception):
    """An entry of the archive, and why it is not copied."""


def screened_copy(path: Path) -> io.BytesIO:
    """The program and its tensors, for `torch.export.load`. A damaged archive raises whatever it happens to."""
    copy = io.BytesIO()
    with zipfile.ZipFile(path) as archive:
        records = _records(archive, path.stat().st_size)
        graph = _read_json(archive, records[_GRAPH])
        with PT2ArchiveWriter(copy) as writer:
            writer.write_string(_GRAPH, json.dumps(_screened(graph)))
            writer.write_bytes("data/sample_inputs/model.pt", b"")  # torch asks for it
            for folder, name in _TENSORS.items():
                config = _screened(_read_json(archive, records[f"{folder}/{name}"]))
                writer.write_string(f"{folder}/{name}", json.dumps(config))
                for record in _payloads(folder, config, records):
                    writer.write_bytes(record, archive.read(records[record]))
    copy.seek(0)
    return copy


def _records(archive: zipfile.ZipFile, size: int) -> dict[str, zipfile.ZipInfo]:
    infos = archive.infolist()
    if "serialized_exported_program.json" in archive.namelist():
        raise Refused("the archive is in the format of torch 2.7 and before, whose tensors are pickles")
    if len(infos) > _ENTRIES or sum(info.file_size for info in infos) > size:
        raise Refused(f"the archive with {len(infos)} entries would unpack to more than its own {size} bytes")
    root = infos[0].filename.partition("/")[0]
    records: dict[str, zipfile.ZipInfo] = {}
    for info in infos:
        folder, _, name = info.filename.partition("/")
        if folder != root or name in records or info.compress_type != zipfile.ZIP_STORED:
            raise Refused(f"the entry {info.filename!r} is not stored as torch does: once, uncompressed, in one folder")
        if not re.fullmatch(_RECORDS, name, re.ASCII):
            what = "compiled code" if "/aotinductor/" in name else "no part of a plain program"
            if re.search(r"\.pt$|/(custom|opaque)_obj_", name):
                what = "a pickle, which runs code when it is read"
            raise Refused(f"the entry {name!r} is {what}")
        records[name] = info
    return records


def _read_json(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Any:
    if info.file_size > _JSON_BYTES:
        raise Refused(f"the entry {info.filename!r} has {info.file_size} bytes of JSON, more than {_JSON_BYTES}")
    return json.loads(archive.read(info))


def _payloads(folder: str, config: Any, records: dict[str, zipfile.ZipInfo]) -> list[str]:
    found: dict[str, None] = {}
    for name, payload in config["config"].items():
        record = f"{folder}/{payload['path_name']}"
        if payload["use_pickle"] is not False:
            raise Refused(f"the tensor {name!r} is a pickle, which runs code when it is read")
        # Without bytes torch would allocate whatever size is claimed.
        if not records[record].file_size and all(size["as_int"] for size in payload["tensor_meta"]["sizes"]):
            raise Refused(f"the tensor {name!r} has a size and no content")
        found[record] = None
    return list(found)


def _screened(value: Any, field: str = "", argument: str = "") -> Any:
    """`value` without what nobody needs. `argument` names the operator's argument that it belongs to."""
    if field in _LEFT_OUT:
        return _LEFT_OUT[field]
    if isinstance(value, str):
        return _text(value, field, argument)
    if isinstance(value, list):
        return [_screened(part, field, argument) for part in value]
    if not isinstance(value, dict):
        return value
    if value.keys() == {"type", "index"}:
        return {"type": "cpu", "index": None}
    if field == "metadata":
        value = {key: text for key, text in value.items() if key == "nn_module_stack"}
    if value.get("fqn"):
        value = {**value, "signature": None}  # calling conventions inside of the network, which nobody calls
    for key in value:
        if not re.fullmatch(_KEYS.get(field, _IDENTIFIER), key, re.ASCII):
            raise Refused(f"the name {key[:80]!r} in {field or 'the program'!r} is not a plain one")
    argument = value["name"] if "arg" in value and "name" in value else argument
    return {key: _screened(part, key, argument) for key, part in value.items()}


def _text(value: str, field: str, argument: str) -> str:
    if field == "target":
        return _operator(value)
    if field == "expr_str":
        return _expression(value)
    if field in ("in_spec", "out_spec"):
        version, spec = json.loads(value)
        return json.dumps([version, _container(spec, _IDENTIFIER if field == "in_spec" else r"(?s:.*)")])
    if field == "as_string":
        allowed = r"(?s:.*)" if argument in _SPOKEN else "cpu|cuda|mps|xpu" if argument == "" else None
    else:
        allowed = _TEXTS.get(field)
    if allowed is None or not re.fullmatch(allowed, value, re.ASCII):
        owner = f"{field!r} of {argument!r}" if argument else repr(field)
        raise Refused(f"the field {owner} says {value[:80]!r}, which is not allowed there")
    return value


def _operator(target: str) -> str:
    """Looked up as torch does it, but among ATen's compiled operators only: a target is any chain of attributes."""
    found = re.fullmatch(r"torch\.ops\.aten\.(\w+)\.(\w+)", target, re.ASCII)
    operator = getattr(getattr(torch.ops.aten, found[1], None), found[2], None) if found else None
    if found and isinstance(operator, OpOverload):
        checked = not found[1].startswith(("_", *_PACKED)) or found[1] in _PRIVATE or torch.Tag.core in operator.tags
        # Others than compiled ones, such as aten.save, belong to TorchScript's interpreter.
        if checked and torch._C._dispatch_has_kernel(operator.name()):  # noqa: SLF001  # there is no public way to ask
            return target
    if target in _PLAIN:
        return target
    raise Refused(f"the operator {target[:80]!r} is none of those that a plain program calls")


def _expression(text: str) -> str:
    """A symbolic size, for sympy to `eval`: numbers, symbols, arithmetic and sympy's and torch's functions by name."""
    try:
        tree = ast.parse(text if len(text) <= _SIZE_CHARACTERS else "", mode="eval")
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        raise Refused(f"the size {text[:80]!r} is no arithmetic, or longer than {_SIZE_CHARACTERS}") from None
    for node in ast.walk(tree):
        match node:
            case ast.Call(func=ast.Name()):
                allowed = True  # its name is a node of its own
            case ast.Name(id=name):
                allowed = name in _FUNCTIONS or re.fullmatch(_SYMBOL, name, re.ASCII) is not None
            case ast.keyword(arg=name):
                allowed = name in _ASSUMPTIONS
            case ast.Constant(value=str(word)):  # sympy evaluates a text again
                allowed = re.fullmatch(rf"{_SYMBOL}|-?\d+(\.\d+)?(e-?\d+)?", word, re.ASCII) is not None
            case ast.Constant(value=number):
                allowed = isinstance(number, bool | int | float) and abs(number) < 1 << 63
            case _:
                allowed = isinstance(node, _SYNTAX)
        if not allowed:
            raise Refused(f"the size {text[:80]!r} is no plain arithmetic")
    return ast.unparse(tree)


def _container(spec: Any, allowed: str) -> dict[str, Any]:
    """Tuples, lists and dictionaries. Any other type has to be imported; if its parts have names it becomes a dict."""
    kind, context = spec["type"], spec["context"]
    parts = [_container(part, allowed) for part in spec["children_spec"]]
    if kind is None or kind in ("builtins.tuple", "builtins.list"):
        return {"type": kind, "context": None if kind is None else "null", "children_spec": parts}
    names = json.loads(context) if isinstance(context, str) else None
    match names:
        case [list(full), list()]:
            names = full  # of a dataclass; the fields that are None follow
    if not isinstance(names, list) or len(names) != len(parts):
        raise Refused(f"the container {kind[:80]!r} has to be imported")
    for name in names:
        if not isinstance(name, str | int) or not re.fullmatch(allowed, str(name), re.ASCII):
            raise Refused(f"the part {name!r} of a container {kind[:80]!r} is no plain name")
    return {"type": "builtins.dict", "context": json.dumps(names), "children_spec": parts}

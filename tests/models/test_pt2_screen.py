"""Hostile archives: each runs its code in torch alone, and none here. What runs makes a folder, the marker."""

import contextlib
import io
import json
import logging
import os
import pickle
import re
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from zipfile import ZIP_DEFLATED, ZipFile

import pytest
import torch
from tests.models.programs import BATCH, Conv, Records, edited, exported, noise, records_of, saved, written

from pellucid.errors import ModelError, UntrustedModel
from pellucid.models.exported import read_program

GRAPH = "models/model.json"
WEIGHTS = "data/weights/model_weights_config.json"
CONSTANTS = "data/constants/model_constants_config.json"


@pytest.fixture(scope="module")
def ordinary(tmp_path_factory: pytest.TempPathFactory) -> Records:
    path = tmp_path_factory.mktemp("ordinary") / "net.pt2"
    return records_of(saved(path, exported(Conv().eval(), noise(2, 3, 4, 4), {0: BATCH})))


class Marking:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


def pickled(*things: object) -> bytes:
    file = io.BytesIO()
    torch.save(things, file)
    return file.getvalue()


def call(marker: Path) -> str:
    return f"__import__('os').mkdir('{marker}')"


def tensor_as_pickle(records: Records, marker: Path) -> None:
    records["data/weights/weight_0"] = pickled(Marking(marker))
    edited(records, WEIGHTS, lambda config: next(iter(config["config"].values())).update(use_pickle=True))


def weights_as_pickle(records: Records, marker: Path) -> None:
    records["data/weights/model.pt"] = pickled(Marking(marker))


def constants_as_pickle(records: Records, marker: Path) -> None:
    records["data/constants/model.pt"] = pickled(Marking(marker))


def opaque_object(records: Records, marker: Path) -> None:
    records["data/constants/opaque_obj_0"] = pickle.dumps(Marking(marker))
    payload = {"path_name": "opaque_obj_0", "is_param": False, "use_pickle": True, "tensor_meta": None}
    edited(records, CONSTANTS, lambda config: config["config"].update(secret=payload))


def symbolic_size(records: Records, marker: Path) -> None:
    records[GRAPH], count = re.subn(rb"Symbol\('s\d+', [^)]*\)", call(marker).encode(), records[GRAPH])
    assert count


def argument_name(records: Records, marker: Path) -> None:
    records[GRAPH], count = re.subn(rb'"x"', json.dumps(f"x={call(marker)}").encode(), records[GRAPH])
    assert count


def output(context: object) -> Callable[[Any], None]:
    leaf = {"type": None, "context": None, "children_spec": []}

    def change(program: Any) -> None:
        spec = [1, {"type": "collections.defaultdict", "context": context, "children_spec": [leaf]}]
        if isinstance(context, str):
            spec[1]["type"] = "builtins.dict"
        program["graph_module"]["module_call_graph"][0]["signature"]["out_spec"] = json.dumps(spec)

    return change


def importable(marker: Path) -> str:
    """A module beside the marker that marks when it is imported; its name is new to torch's cache and Python's."""
    name = f"hostile_{abs(hash(marker))}"
    (marker.parent / f"{name}.py").write_text(f"{call(marker)}\nthing = dict\n")
    return name


def imported_factory(records: Records, marker: Path) -> None:
    factory = {"default_factory_module": importable(marker), "default_factory_name": "thing", "dict_context": ["a"]}
    edited(records, GRAPH, output(factory))


def imported_enum(records: Records, marker: Path) -> None:
    edited(records, GRAPH, output(json.dumps([{"__enum__": True, "fqn": f"{importable(marker)}:thing", "name": "a"}])))


def operator_of_files(records: Records, marker: Path) -> None:
    """The bias of the last layer becomes a file that the operator makes."""
    texts = {"as_string": str(marker)}, {"as_bool": True}, {"as_int": 5}
    names = "filename", "shared", "size"
    inputs = [{"name": name, "arg": arg, "kind": 1} for name, arg in zip(names, texts, strict=True)]
    made = {"as_tensor": {"name": "made"}}

    def change(program: Any) -> None:
        graph = program["graph_module"]["graph"]
        bias = graph["nodes"][-1]["inputs"][2]["arg"]["as_tensor"]["name"]
        graph["tensor_values"]["made"] = graph["tensor_values"][bias]
        graph["nodes"][-1]["inputs"][2]["arg"] = made
        node = {**graph["nodes"][-1], "target": "torch.ops.aten.from_file.default", "inputs": inputs, "outputs": [made]}
        graph["nodes"].insert(-1, {**node, "name": "made"})

    edited(records, GRAPH, change)


def format_of_2_7(records: Records, marker: Path) -> None:
    graph = records[GRAPH]
    records.clear()
    records["version"] = b"8.20"
    records["serialized_exported_program.json"] = graph
    records["serialized_state_dict.pt"] = pickled(Marking(marker))
    records["serialized_constants.pt"] = records["serialized_example_inputs.pt"] = b""


RUNS = [
    (tensor_as_pickle, "the tensor 'features.0.weight' is a pickle"),
    (weights_as_pickle, "'data/weights/model.pt' is a pickle"),
    (constants_as_pickle, "'data/constants/model.pt' is a pickle"),
    (opaque_object, "'data/constants/opaque_obj_0' is a pickle"),
    (symbolic_size, "the size .* is no plain arithmetic"),
    (argument_name, "in '.*' is not a plain one|which is not allowed there"),
    (imported_factory, "the container 'collections.defaultdict' has to be imported"),
    (imported_enum, "is no plain name"),
    (operator_of_files, "the field 'as_string' of 'filename'"),
    (format_of_2_7, "the format of torch 2.7"),
]


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Without what torch tells about old and broken files; one of its messages breaks its own formatting."""
    logging.disable()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)


def hostile(change: Callable[[Records, Path], None], records: Records, folder: Path) -> tuple[Path, Path]:
    records, marker = dict(records), folder / "marker"
    change(records, marker)
    return written(folder / "net.pt2", records, "" if change is format_of_2_7 else "net/"), marker


@pytest.mark.parametrize(("change", "told"), RUNS)
def test_code_in_the_file_does_not_run(
    change: Callable[[Records, Path], None],
    told: str,
    ordinary: Records,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    path, marker = hostile(change, ordinary, tmp_path)
    with pytest.raises(UntrustedModel, match=told) as caught:
        read_program(path)
    assert not marker.exists()
    assert "trust=True (--trust-model)" in str(caught.value)


@pytest.mark.parametrize("change", [change for change, _ in RUNS])
def test_the_same_code_runs_where_the_file_is_trusted(
    change: Callable[[Records, Path], None], ordinary: Records, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    path, marker = hostile(change, ordinary, tmp_path)
    with silence(), contextlib.suppress(ModelError):  # it ran before torch saw that what it made is no tensor
        read_program(path, trust=True).network(torch.zeros(2, 3, 4, 4))
    assert marker.exists()


def test_sample_inputs_and_guards_are_left_out(ordinary: Records, tmp_path: Path) -> None:
    records, marker = dict(ordinary), tmp_path / "marker"
    records["data/sample_inputs/model.pt"] = pickled((Marking(marker),), {})
    edited(records, GRAPH, lambda program: program.update(guards_code=[call(marker)]))
    path = written(tmp_path / "net.pt2", records)
    assert read_program(path).network(torch.zeros(2, 3, 4, 4)).shape == (2, 5)
    assert not marker.exists()
    with silence():
        torch.export.load(path)
    assert marker.exists()


def with_record(name: str) -> Callable[[Records], None]:
    return lambda records: records.update({name: b"content"})


def with_node(**fields: Any) -> Callable[[Records], None]:
    def change(records: Records) -> None:
        edited(records, GRAPH, lambda program: program["graph_module"]["graph"]["nodes"][0].update(fields))

    return change


def with_empty_tensor(records: Records) -> None:
    records["data/weights/weight_0"] = b""


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (with_record("data/constants/custom_obj_0"), "'data/constants/custom_obj_0' is a pickle"),
        (with_record("data/aotinductor/model/net.so"), "is compiled code"),
        (with_record("data/executorch/net.pte"), "is no part of a plain program"),
        (with_node(target="torch.os.system"), "the operator 'torch.os.system'"),
        (with_node(inputs=[{"name": "", "arg": {"as_operator": "torch.os.system"}}]), "the field 'as_operator'"),
        (with_node(inputs=[{"name": "a", "arg": {"as_custom_obj": {"name": "a", "class_fqn": "b"}}}]), "'class_fqn'"),
        (with_node(name="a\nb"), "the field 'name'"),
        (with_node(metadata={"nn_module_stack": 'k,a"+b+",T'}), "the field 'nn_module_stack'"),
        (with_empty_tensor, "has a size and no content"),
    ],
)
def test_what_is_not_known_is_refused(
    change: Callable[[Records], None], told: str, ordinary: Records, tmp_path: Path
) -> None:
    records = dict(ordinary)
    change(records)
    with pytest.raises(UntrustedModel, match=told):
        read_program(written(tmp_path / "net.pt2", records))


def test_compressed_and_repeated_entries_are_refused(ordinary: Records, tmp_path: Path) -> None:
    path = written(tmp_path / "net.pt2", ordinary)
    with warnings.catch_warnings(), ZipFile(path, "a") as archive:
        warnings.filterwarnings("ignore", "Duplicate name", UserWarning)
        archive.writestr(f"net/{GRAPH}", ordinary[GRAPH])
    with pytest.raises(UntrustedModel, match="not stored as torch does: once"):
        read_program(path)
    with ZipFile(path := written(tmp_path / "bomb.pt2", ordinary), "a") as archive:
        archive.writestr("net/extra/zeros", bytes(10_000_000), ZIP_DEFLATED)
    with pytest.raises(UntrustedModel, match="would unpack to more than its own"):
        read_program(path)


def test_a_description_may_not_be_endless(ordinary: Records, tmp_path: Path) -> None:
    path = written(tmp_path / "net.pt2", {**ordinary, GRAPH: b" " * (64 << 20) + ordinary[GRAPH]})
    with pytest.raises(UntrustedModel, match=r"bytes of JSON, more than"):
        read_program(path)


@pytest.mark.parametrize("graph", [b"{", b"[" * 100_000, b"1" * 10_000, b"{}", b"null", b"\xff"])
def test_a_damaged_description_is_told(graph: bytes, ordinary: Records, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="damaged, or not for torch"):
        read_program(written(tmp_path / "net.pt2", {**ordinary, GRAPH: graph}))

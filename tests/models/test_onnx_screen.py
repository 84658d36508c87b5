"""ONNX files are read before onnxruntime sees them: what they name, and where their weights lie."""

import numpy as np
import pytest
from onnx import helper, numpy_helper
from tests.models.graphs import linear, model, outside, saved, value

from pellucid.errors import ModelError
from pellucid.models import onnx_screen
from pellucid.models.onnx_screen import read_onnx

pytestmark = pytest.mark.doors

WEIGHT = np.arange(6, dtype=np.float32).reshape(3, 2)


def refused(path, words):
    with pytest.raises(ModelError, match=words):
        read_onnx(path)


def named(domain, op="Twist", functions=(), inside=False):
    node = helper.make_node(op, ["x"], ["y"], domain=domain)
    if inside:
        branch = helper.make_graph([node], "branch", [], [value("y", ["rows", 2])])
        node = helper.make_node("If", ["flag"], ["y"], then_branch=branch, else_branch=branch)
    x, y = value("x", ["rows", 2]), value("y", ["rows", 2])
    return model([node], [x], [y], functions=functions, domains=[domain] if domain else [])


def test_a_file_is_its_bytes_and_needs_no_folder(tmp_path):
    path = saved(tmp_path / "net.onnx", linear(WEIGHT))
    found = read_onnx(path)
    assert found.content == path.read_bytes()
    assert found.folder is None


def test_the_fingerprint_follows_the_bytes(tmp_path):
    one = read_onnx(saved(tmp_path / "one.onnx", linear(WEIGHT)))
    same = read_onnx(saved(tmp_path / "same.onnx", linear(WEIGHT)))
    other = read_onnx(saved(tmp_path / "other.onnx", linear(WEIGHT + 1)))
    assert one.fingerprint == same.fingerprint != other.fingerprint
    assert len(one.fingerprint) == 32


def test_the_fingerprint_follows_weights_in_another_file(tmp_path):
    path = saved(tmp_path / "net.onnx", outside(linear(WEIGHT), "weights.bin"))
    (tmp_path / "weights.bin").write_bytes(WEIGHT.tobytes())
    one = read_onnx(path)
    (tmp_path / "weights.bin").write_bytes((WEIGHT + 1).tobytes())
    assert one.folder == tmp_path
    assert read_onnx(path).fingerprint != one.fingerprint


@pytest.mark.parametrize("inside", [False, True])
def test_operators_of_ones_own_are_refused_by_name_also_in_branches(tmp_path, inside):
    refused(saved(tmp_path / "net.onnx", named("my.domain", inside=inside)), r"it uses my\.domain\.Twist\. Operators")


@pytest.mark.parametrize("domain", ["", "ai.onnx", "ai.onnx.ml", "com.microsoft"])
def test_operators_that_onnxruntime_brings_are_not(tmp_path, domain):
    assert read_onnx(saved(tmp_path / "net.onnx", named(domain))).content


def test_functions_of_the_file_are_its_own(tmp_path):
    body = [helper.make_node("Neg", ["x"], ["y"])]
    opset = [helper.make_opsetid("", 20)]
    twist = helper.make_function("mine", "Twist", ["x"], ["y"], body, opset)
    assert read_onnx(saved(tmp_path / "net.onnx", named("mine", functions=[twist]))).content
    refused(saved(tmp_path / "net.onnx", named("mine", "Turn", functions=[twist])), r"mine\.Turn")
    hidden = helper.make_function(
        "mine", "Twist", ["x"], ["y"], [helper.make_node("Deep", ["x"], ["y"], domain="theirs")], opset
    )
    refused(saved(tmp_path / "net.onnx", named("mine", functions=[hidden])), r"theirs\.Deep")


@pytest.mark.parametrize("location", ["../weights.bin", "/etc/passwd", "*/_ORT_MEM_ADDR_/*", "a\0b", "", "."])
def test_weights_outside_the_folder_are_refused(tmp_path, location):
    (tmp_path / "weights.bin").write_bytes(WEIGHT.tobytes())
    (tmp_path / "in").mkdir()
    refused(saved(tmp_path / "in" / "net.onnx", outside(linear(WEIGHT), location)), "its weights lie in")


def test_a_link_out_of_the_folder_is_outside(tmp_path):
    (tmp_path / "weights.bin").write_bytes(WEIGHT.tobytes())
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "weights.bin").symlink_to(tmp_path / "weights.bin")
    path = saved(tmp_path / "in" / "net.onnx", outside(linear(WEIGHT), "weights.bin"))
    refused(path, "outside its folder, and such files are not opened")


def test_weights_that_are_not_there_are_named(tmp_path):
    refused(saved(tmp_path / "net.onnx", outside(linear(WEIGHT), "weights.bin")), "'weights.bin', which is not there")


def test_weights_of_a_node_are_looked_for_too(tmp_path):
    constant = outside(linear(WEIGHT), "../weights.bin").graph.initializer[0]
    made = model([helper.make_node("Constant", [], ["y"], value=constant)], [], [value("y", [3, 2])])
    refused(saved(tmp_path / "net.onnx", made), "outside its folder")


def test_large_files_are_refused_alone_and_with_their_weights(tmp_path, monkeypatch):
    plain, apart = saved(tmp_path / "a.onnx", linear(WEIGHT)), outside(linear(WEIGHT), "weights.bin")
    (tmp_path / "weights.bin").write_bytes(bytes(1000))
    monkeypatch.setattr(onnx_screen, "MOST_BYTES", 900)
    assert read_onnx(plain).content
    refused(saved(tmp_path / "b.onnx", apart), "with its weights over 0 GiB")
    monkeypatch.setattr(onnx_screen, "MOST_BYTES", 20)
    refused(plain, "a.onnx: over 0 GiB, which is too large")


@pytest.mark.parametrize(
    "content",
    [b"", b"junk", b"\x80\x04K\x01.", b"PK\x03\x04", b"\x08\x0a", b"\xff" * 40, b"\x00\x00", b"\x0b", b"\x0a\x7f"],
)
def test_what_is_no_onnx_is_told(tmp_path, content):
    path = tmp_path / "net.onnx"
    path.write_bytes(content)
    refused(path, "no ONNX file, or a damaged one")


def test_a_file_that_is_cut_off_is_told(tmp_path):
    path = saved(tmp_path / "net.onnx", linear(WEIGHT))
    path.write_bytes(path.read_bytes()[:-4])
    refused(path, "no ONNX file, or a damaged one")


def test_graphs_in_graphs_need_no_stack(tmp_path):
    def framed(number, content):
        length, size = b"", len(content)
        while size >= 0x80:
            length, size = length + bytes([size & 0x7F | 0x80]), size >> 7
        return bytes([number << 3 | 2]) + length + bytes([size]) + content

    graph = b""
    for _ in range(3000):
        graph = framed(1, framed(5, framed(6, graph)))
    path = tmp_path / "net.onnx"
    path.write_bytes(b"\x08\x0a" + framed(7, graph))
    assert read_onnx(path).content


def test_a_file_that_is_not_there_is_told(tmp_path):
    refused(tmp_path / "net.onnx", "there is no such file")


def test_numbers_of_fixed_length_are_skipped(tmp_path):
    node = helper.make_node("Elu", ["x"], ["y"], alpha=0.5)  # a fixed number of 32 bits
    made = model([node], [value("x", [1, 2])], [value("y", [1, 2])], [numpy_helper.from_array(WEIGHT, "w")])
    assert read_onnx(saved(tmp_path / "net.onnx", made)).content

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
    refused(saved(tmp_path / "net.onnx", named("my.domain", inside=inside)), r"it uses 'my\.domain\.Twist'\. Operators")


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


# Forms that readers could take for something else


def varint(number):
    out = b""
    while number >= 0x80:
        out, number = out + bytes([number & 0x7F | 0x80]), number >> 7
    return out + bytes([number])


def field(number, content, *, more=0):
    """A field of bytes; `more` is set among the bits above its number."""
    return varint(more | number << 3 | 2) + varint(len(content)) + content


def written(tmp_path, content):
    path = tmp_path / "net.onnx"
    path.write_bytes(content)
    return path


VERSION = b"\x08\x0a"


def test_field_numbers_that_protobuf_would_cut_are_refused(tmp_path):
    """Protobuf reads 32 bits of a number: of 2**32 + 7 it may make the graph, which was then not looked at."""
    graph = field(7, b"")
    for hidden in (field(7, b"", more=2**32), field(7, b"", more=2**35), bytes([7 << 3 | 2 | 0x80, 0x00, 0x00])):
        refused(written(tmp_path, VERSION + graph + hidden), "a field of no valid number")
    inside = field(5, field(13, b"", more=2**32))
    refused(written(tmp_path, VERSION + field(7, inside)), "a field of no valid number")
    refused(written(tmp_path, VERSION + graph + b"\x00\x00"), "a field of no valid number")


def test_a_second_graph_is_refused(tmp_path):
    assert read_onnx(written(tmp_path, VERSION + field(7, b""))).content
    refused(written(tmp_path, VERSION + field(7, b"") * 2), "more than one graph")


def test_so_many_parts_and_fields_are_read_and_no_more(tmp_path, monkeypatch):
    few, many = (VERSION + field(7, field(1, b"") * count) for count in (10, 11))
    monkeypatch.setattr(onnx_screen, "MOST_PARTS", 11)  # with the graph
    assert read_onnx(written(tmp_path, few)).content
    refused(written(tmp_path, many), "over 11 parts")
    monkeypatch.setattr(onnx_screen, "MOST_PARTS", 10**6)
    monkeypatch.setattr(onnx_screen, "_MOST_FIELDS", 14)  # two of the file, twice
    assert read_onnx(written(tmp_path, few)).content
    refused(written(tmp_path, many), "over 14 fields")


@pytest.mark.parametrize("location", ["*/_ORT_MEM_ADDR_/*", "*/_ORT_MEM_ADDR_/", "./*/_ORT_MEM_ADDR_/*"])
def test_addresses_in_memory_are_no_files_even_if_there_is_one(tmp_path, location):
    there = tmp_path / location
    (tmp_path / "*" / "_ORT_MEM_ADDR_").mkdir(parents=True)
    if location.endswith("*"):
        there.write_bytes(WEIGHT.tobytes())
    refused(saved(tmp_path / "net.onnx", outside(linear(WEIGHT), location)), "an address in memory and no file")


def test_names_of_a_file_do_not_act_on_a_terminal(tmp_path):
    with pytest.raises(ModelError, match="it uses") as told:
        read_onnx(saved(tmp_path / "net.onnx", named("evil\x1b[2J", "\x1b]0;pwned\x07" + "x" * 1000)))
    with pytest.raises(ModelError, match="its weights lie in") as other:
        read_onnx(saved(tmp_path / "net.onnx", outside(linear(WEIGHT), "\x1b[31m" + "x" * 1000)))
    for text in (str(told.value), str(other.value)):
        assert text.isprintable()
        assert len(text.removeprefix(str(tmp_path))) < 500

"""Two formats of JSON: what is sent for rows, and what replies say."""

import json

import numpy as np
import pytest
import torch

from pellucid.errors import ModelError
from pellucid.models.inference_protocol import V2, Plain, parsed

ROWS = torch.tensor([[[1.0, 2.0]], [[3.0, 4.0]]])


def test_plain_sends_nested_rows_and_reads_them():
    assert Plain().request({"": ROWS}) == {"inputs": [[[1.0, 2.0]], [[3.0, 4.0]]]}
    np.testing.assert_array_equal(Plain().outputs({"outputs": [[1, 2], [3, 4]]}), [[1, 2], [3, 4]])


def test_the_second_format_sends_names_shapes_types_and_numbers_in_row_major_order():
    [sent] = V2().request({"x": ROWS})["inputs"]
    assert sent == {"name": "x", "shape": [2, 1, 2], "datatype": "FP32", "data": [1.0, 2.0, 3.0, 4.0]}
    across = torch.tensor([[1.0, 3.0], [2.0, 4.0]]).T
    assert V2().request({"x": across})["inputs"][0]["data"] == [1.0, 2.0, 3.0, 4.0]


@pytest.mark.parametrize(
    ("part", "datatype"),
    [
        (torch.zeros(1, dtype=torch.float16), "FP16"),
        (torch.zeros(1, dtype=torch.float64), "FP64"),
        (torch.zeros(1, dtype=torch.bfloat16), "FP32"),
        (torch.zeros(1, dtype=torch.int64), "INT64"),
        (torch.zeros(1, dtype=torch.bool), "BOOL"),
    ],
)
def test_types_have_their_names(part, datatype):
    assert V2().request({"x": part})["inputs"][0]["datatype"] == datatype


def test_a_selected_output_alone_is_asked_for():
    assert V2("y").request({"x": ROWS})["outputs"] == [{"name": "y"}]
    assert "outputs" not in V2(1).request({"x": ROWS})


def reply(*outputs):
    return {"outputs": [{"name": n, "shape": s, "datatype": "FP32", "data": d} for n, s, d in outputs]}


@pytest.mark.parametrize("data", [[1, 2, 3, 4, 5, 6], [[1, 2, 3], [4, 5, 6]]])
def test_numbers_are_read_in_row_major_order_flat_or_nested(data):
    np.testing.assert_array_equal(V2().outputs(reply(("y", [2, 3], data))), [[1, 2, 3], [4, 5, 6]])


@pytest.mark.parametrize("select", ["b", 1])
def test_the_selected_output_is_read(select):
    found = V2(select).outputs(reply(("a", [1, 1], [1]), ("b", [1, 1], [2])))
    np.testing.assert_array_equal(found, [[2]])


@pytest.mark.doors
@pytest.mark.parametrize(
    ("select", "answer", "words"),
    [
        (None, {}, 'Expected a reply {"outputs"'),
        (None, {"outputs": [{"shape": [1]}]}, 'Expected a reply {"outputs"'),
        (None, reply(([], [1], [1])), 'Expected a reply {"outputs"'),
        (None, reply(({}, [1], [1])), 'Expected a reply {"outputs"'),
        (None, reply(("a", [2**62, 0], [])), "none of them empty, but got the shape"),
        (None, reply(("a", [2, *[1] * 100], [1, 2])), "of 16 axes at most"),
        (None, reply(("z" * 10**6, [3], [1])), "numbers of output 'zzzz"),
        (None, reply(*((f"{i}" * 99, [1], [1]) for i in range(99))), "and 89 more"),
        (True, reply(("a", [1], [1]), ("b", [1], [1])), "Got select=True"),
        (None, reply(("a", [1], [1]), ("b", [1], [1])), "say which of 'a', 'b'"),
        ("c", reply(("a", [1], [1])), "say which of 'a': select=... Got select='c'"),
        (1, reply(("a", [1], [1])), "Got select=1"),
        (None, reply(("a", "2", [1])), "Expected the shape of output 'a'"),
        (None, reply(("a", [-1, 1], [1])), "Expected the shape of output 'a'"),
        (None, reply(("a", [True], [1])), "Expected the shape of output 'a'"),
        (None, reply(("a", [2, 2], [1, 2, 3])), r"Expected \[2, 2\] numbers of output 'a', but got 3"),
        (None, reply(("a", [1, 1], None)), r"Expected \[1, 1\] numbers|NaN|Expected"),
    ],
)
def test_replies_of_another_form_are_told(select, answer, words):
    if answer.get("outputs") and answer["outputs"][0].get("data", 0) is None:
        assert np.isnan(V2(select).outputs(answer)).all()
        return
    with pytest.raises(ModelError, match=words) as told:
        V2(select).outputs(answer)
    assert len(str(told.value)) < 1000


def test_the_endpoint_says_its_one_input():
    assert V2().only_input({"inputs": [{"name": "x", "datatype": "FP16", "shape": [-1, 3]}]}) == ("x", "FP16")


@pytest.mark.doors
@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        ([], "Expected a description with its inputs"),
        ({"inputs": [{"datatype": "FP32"}]}, "Expected a description with its inputs"),
        ({"inputs": [{"name": "a"}, {"name": "b"}]}, r"It has 2 inputs \('a', 'b'\). Pass a dict"),
        ({"inputs": [{"name": ["a"], "datatype": "FP32"}]}, "Expected a description with its inputs"),
        ({"inputs": [{"name": f"n{i}"} for i in range(10**4)]}, "It has 10000 inputs .* and 9990 more"),
        ({"inputs": [{"name": "a", "datatype": ["FP32"]}]}, "Its input 'a' takes"),
        ({"inputs": [{"name": "a", "datatype": "UINT8"}]}, "Its input 'a' takes 'UINT8'; only FP16, FP32, FP64"),
    ],
)
def test_a_description_without_such_an_input_is_told(metadata, words):
    with pytest.raises(ModelError, match=words):
        V2().only_input(metadata)


def test_null_nan_and_infinity_are_numbers():
    found = Plain().outputs(parsed(b'{"outputs": [[null, NaN, Infinity, 1]]}'))
    assert np.isnan(found[0, :2]).all()
    assert found[0, 2:].tolist() == [np.inf, 1]


def test_whole_numbers_of_any_size_are_read():
    assert Plain().outputs(json.loads(f'{{"outputs": [[{2**70}]]}}'))[0, 0] == 2.0**70


@pytest.mark.doors
def test_a_number_beyond_all_is_told():
    with pytest.raises(ModelError, match="Expected numbers that a computer holds, but one is over 1e308"):
        Plain().outputs({"outputs": [[10**400]]})


@pytest.mark.doors
@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b'{"outputs": %s1%s}' % (b"[" * 70, b"]" * 70), "Expected rows of numbers, but got lists in lists, 70 deep"),
        (b"[" * 10**5, "Expected lists that are not so deep, but got"),
        (b'{"outputs": [[%s]]}' % (b"9" * 5000), "Expected numbers that are not so long, but got"),
    ],
)
def test_what_is_too_deep_or_too_long_is_told_as_that(content, words):
    with pytest.raises(ModelError, match=words) as told:
        Plain().outputs(parsed(content))
    assert len(str(told.value)) < 200


@pytest.mark.doors
def test_what_is_shown_is_masked_before_it_is_cut():
    secret = "s3cr3t" * 10

    def public(text):
        return text.replace(secret, "…")

    for content in (b"no: %s" % secret.encode(), json.dumps({"error": f"the key {secret}"}).encode()):
        with pytest.raises(ModelError, match="…") as told:
            Plain(public=public).outputs(parsed(content, public))
        assert "s3cr3t" not in str(told.value)

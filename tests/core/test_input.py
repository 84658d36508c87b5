import pytest
import torch
from tests.oracles import uniform

import pellucid as pl


def test_a_bare_tensor_gets_names():
    x = pl.Input(uniform(2, 3))
    assert x.sources == ("input 0", "input 1")
    assert x.notes == ((), ())
    assert x.views == ()


def test_rows_keep_what_belongs_to_them():
    view = pl.View("image", {}, torch.zeros(1))
    other = pl.View("image", {"box": 1}, torch.zeros(1))
    x = pl.Input(uniform(2, 3), ("a", "b"), (view, other), ((), ("16 bits",)))
    assert x[1].sources == ("b",)
    assert x[-1].views == (other,)
    assert x[1].notes == (("16 bits",),)
    assert torch.equal(x[1].tensor, x.tensor[1:])
    assert [row.sources for row in x] == [("a",), ("b",)]
    assert x[:1].sources == ("a",)
    assert len(x[0:2]) == 2
    with pytest.raises(IndexError):
        _ = x[2]


@pytest.mark.doors
def test_counts_must_agree():
    with pytest.raises(pl.ArgumentError, match="for each of 2 inputs, but got 1, 2 and 0"):
        pl.Input(uniform(2, 3), ("only one",))


def test_several_tensors_are_packed_and_each_row_keeps_its_parts():
    parts = {"picture": uniform(2, 3, 4, 4), "ids": torch.tensor([[1, 2], [3, 4]])}
    x = pl.Input.of(parts)
    assert x.tensor.shape == (2, 3 * 16 + 2)
    assert x.sources == ("input 0", "input 1")
    for row in (x[1], x[1:], list(x)[1], x[-1]):
        picture, ids = row.packing.given(row.tensor)
        assert torch.equal(picture, parts["picture"][1:])
        assert torch.equal(ids, parts["ids"][1:])
    assert pl.Input(x.tensor).packing is None


def test_a_tuple_of_tensors_goes_by_place():
    x = pl.Input.of((uniform(2, 3), uniform(2, 4)))
    assert x.packing.names == ("0", "1")
    assert not x.packing.by_name


@pytest.mark.doors
def test_parts_of_different_batches_are_refused():
    with pytest.raises(pl.ArgumentError, match=r"as many rows, one or more, in each part, but got \[2, 3\]"):
        pl.Input.of((uniform(2, 3), uniform(3, 3)))


@pytest.mark.doors
@pytest.mark.parametrize(
    ("x", "words"),
    [(uniform(3), r"at least one row. Got \(3,\).*x\[None\]"), (torch.ones(2, 3, dtype=torch.long), "Got torch.int64"),
     (uniform(0, 3), r"Got \(0, 3\)"), ([1.0], "Got list")],
)  # fmt: skip
def test_what_is_no_batch_of_floating_point_is_refused(x, words):
    with pytest.raises(pl.ArgumentError, match=words):
        pl.Input(x)

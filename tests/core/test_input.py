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

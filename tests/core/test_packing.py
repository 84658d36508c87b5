"""Several tensors as one row, and back."""

import pytest
import torch
from tests.oracles import uniform

import pellucid as pl
from pellucid.core.packing import Packing, pack, spread
from pellucid.core.recipe import decode, encode

PARTS = {
    "picture": uniform(2, 3, 4, 5),
    "ids": torch.tensor([[7, 2**24, -3], [0, 1, 2]]),
    "mask": torch.tensor([[True, False], [False, True]]),
    "number": uniform(2, seed=1),
}


def test_parts_come_back_in_their_order_shapes_and_types():
    rows, packing = pack(PARTS)
    assert rows.shape == (2, 60 + 3 + 2 + 1)
    assert packing == Packing(
        ("picture", "ids", "mask", "number"), ((3, 4, 5), (3,), (2,), ()), ("float32", "int64", "bool", "float32"), True
    )
    for part, (name, given) in zip(packing.given(rows), PARTS.items(), strict=True):
        assert part.dtype == given.dtype, name
        assert torch.equal(part, given), name
    assert torch.equal(packing.packed(list(packing.parts(rows).values())), rows)


def test_a_tuple_goes_by_place():
    _, packing = pack((uniform(2, 3), uniform(2, 1)))
    assert packing.names == ("0", "1")
    assert not packing.by_name


def test_whole_numbers_are_held_and_not_explained():
    rows, packing = pack(PARTS)
    assert packing.held == (False, True, True, False)
    assert list(packing.explained(rows)) == ["picture", "number"]
    assert torch.equal(packing.mask(rows), torch.cat([torch.ones(60), torch.zeros(5), torch.ones(1)]))


def test_whole_numbers_alone_are_all_held():
    rows, packing = pack({"ids": PARTS["ids"]})
    assert packing.held == (True,)
    assert packing.explained(rows) == {}
    assert not packing.mask(rows).any()
    assert torch.equal(packing.given(rows)[0], PARTS["ids"])
    assert packing.drawn == 0


def test_what_was_moved_a_little_is_the_same_whole_number():
    rows, packing = pack(PARTS)
    for step in (0.4, -0.4):
        moved = packing.given(rows + step * (1 - packing.mask(rows)))
        assert torch.equal(moved[1][1], PARTS["ids"][1])


def test_the_others_are_given_in_the_type_that_is_asked_for():
    rows, packing = pack(PARTS)
    assert [part.dtype for part in packing.given(rows, torch.float64)] == [
        torch.float64, torch.int64, torch.bool, torch.float64
    ]  # fmt: skip
    assert packing.given(rows.double())[0].dtype == torch.float64


@pytest.mark.parametrize(
    ("types", "expected"),
    [
        ((torch.float32, torch.float64), torch.float64),
        ((torch.float64, torch.float32), torch.float64),
        ((torch.bfloat16, torch.bfloat16), torch.bfloat16),
        ((torch.bfloat16, torch.int64), torch.float32),
        ((torch.int64, torch.float16), torch.float32),
    ],
)
def test_rows_have_digits_enough_for_all_parts(types, expected):
    parts = [torch.full((1, 1), 257).to(dtype) for dtype in types]
    rows, packing = pack(parts)
    assert rows.dtype == expected
    assert all(torch.equal(a.to(b.dtype), b) for a, b in zip(packing.given(rows), parts, strict=True))


def test_gradients_reach_the_parts_that_are_explained():
    rows, packing = pack(PARTS)
    leaf = rows.requires_grad_()
    given = packing.given(leaf)
    ((given[0] * 2).sum() + given[1].sum() * given[3].sum()).backward()
    assert torch.equal(leaf.grad[0], torch.cat([torch.full((60,), 2.0), torch.zeros(5), PARTS["ids"].sum()[None]]))


def test_a_packing_survives_a_recipe():
    packing = pack(PARTS)[1]
    assert decode(encode(packing)) == packing


@pytest.mark.doors
@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ({}, r"tensors \(B, ...\), in a dict or tuple. Got \[\]"),
        ((uniform(2, 3), [1, 2]), r"Got \['Tensor', 'list'\]"),
        ((uniform(2, 3), torch.tensor(1.0)), r"tensors \(B, \.\.\.\)"),
        ((uniform(2, 3), uniform(3, 3)), r"as many rows, one or more, in each part, but got \[2, 3\]"),
        ((uniform(0, 3),), r"but got \[0\]"),
        ((uniform(1, 2), torch.tensor([[2**24 + 1]])), "Whole numbers among the inputs are 16777216 at most"),
        ((uniform(1, 2), torch.tensor([[-(2**24) - 1]])), "16777216 at most"),
    ],
)
def test_parts_that_do_not_go_together_are_refused(parts, words):
    with pytest.raises(pl.ArgumentError, match=words):
        pack(parts)


def test_a_type_that_there_is_not_is_refused():
    with pytest.raises(pl.ArgumentError, match="the name of a tensor's type, but got 'Tensor'"):
        _ = Packing(("a",), ((1,),), ("Tensor",)).held


def test_an_empty_part_stays_empty():
    rows, packing = pack((uniform(2, 3), torch.zeros(2, 0), torch.zeros(2, 0, dtype=torch.long)))
    assert [part.shape for part in packing.given(rows)] == [(2, 3), (2, 0), (2, 0)]
    assert spread(rows, packing).shape == (2, 3)


# the range of an input


def test_the_range_is_each_inputs_own_over_all_its_features():
    x = torch.stack([torch.arange(12.0).reshape(3, 2, 2), -torch.ones(3, 2, 2)])
    assert spread(x, None).shape == (2, 1, 1, 1)
    assert spread(x, None).flatten().tolist() == [11.0, 0.0]


def test_each_part_has_its_own_range_and_a_held_one_none():
    rows, packing = pack({"a": torch.tensor([[0.0, 2.0], [5.0, 1.0]]), "ids": torch.tensor([[3, 9], [0, 1]]),
                          "b": torch.tensor([[10.0, 20.0, 15.0], [0.0, 0.0, 0.0]])})  # fmt: skip
    assert spread(rows, packing).tolist() == [[2.0, 2.0, 0.0, 0.0, 10.0, 10.0, 10.0], [4.0, 4.0, 0.0, 0.0, 0, 0, 0]]


# networks


class Several(torch.nn.Module):
    """By name or place: 2 a + the row of `table` that `ids` names."""

    def __init__(self) -> None:
        super().__init__()
        self.table = torch.nn.Parameter(torch.arange(8.0).reshape(4, 2))

    def forward(self, a: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        assert ids.dtype == torch.int64
        return 2 * a + self.table[ids[:, 0]]


@pytest.mark.parametrize("by_name", [True, False])
def test_a_network_gets_its_inputs_by_name_or_by_place_and_the_gradient_is_that_of_each_part(by_name):
    parts = {"ids": torch.tensor([[1], [3]]), "a": uniform(2, 2)}
    given = parts if by_name else (parts["a"], parts["ids"])
    model = pl.TorchModel(Several())
    expected = 2 * parts["a"] + torch.tensor([[2.0, 3.0], [6.0, 7.0]])
    assert torch.equal(model.predict(given).outputs, expected)
    found = pl.SimpleGradient()(model, given, 1).parts
    assert torch.equal(found["a" if by_name else "0"], torch.tensor([[0.0, 2.0], [0.0, 2.0]]))


@pytest.mark.parametrize(
    "wrap",
    [lambda net: net, torch.nn.DataParallel, lambda net: torch.compile(net, backend="eager")],
    ids=["plain", "parallel", "compiled"],
)
def test_a_network_may_take_one_dict(wrap):
    class OneDict(torch.nn.Module):
        def forward(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
            return inputs["a"] * inputs["b"]

    parts = {"a": uniform(2, 2), "b": uniform(2, 2, seed=1)}
    assert torch.equal(pl.TorchModel(wrap(OneDict())).predict(parts).outputs, parts["a"] * parts["b"])

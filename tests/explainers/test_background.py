"""Which baselines there are for each input, and which of them a sample takes."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from tests.oracles import Linear, uniform

import pellucid as pl
from pellucid.core.packing import pack
from pellucid.core.random import Key
from pellucid.explainers._background import absent, check_baselines, drawn

X = uniform(3, 5, seed=1, dtype=torch.float64)
ROWS = uniform(4, 5, seed=2)


@contextmanager
def quiet(packing: object = None, **settings: object) -> Iterator[pl.Model]:
    model = pl.TorchModel(Linear(uniform(2, 5, dtype=torch.float64)), **settings)
    with model.undisturbed(Key.named("x"), packing) as inside:
        yield inside


def test_the_rows_of_a_background_are_the_same_for_every_input():
    with quiet() as model:
        found = absent(pl.Background.of(ROWS), model, X)
    assert found.shape == (4, 1, 5)
    assert found.dtype == torch.float64, "as the inputs"
    assert torch.equal(found[:, 0], ROWS.double())


def test_baselines_are_each_inputs_own_in_their_order():
    with quiet() as model:
        found = absent((pl.FeatureMean(), pl.Constant(2.0)), model, X)
    assert found.shape == (2, 3, 5)
    torch.testing.assert_close(found[0], X.mean(1, keepdim=True).expand(3, 5), rtol=1e-15, atol=0)
    assert torch.equal(found[1], torch.full_like(X, 2.0))


def test_a_pixel_is_in_the_models_units():
    prepare = pl.ImagePreprocess(size=2, mean=0.5, std=0.25)
    pictures = uniform(2, 3, 2, 2, dtype=torch.float64)
    with quiet(preprocess=prepare) as model:
        found = absent((pl.Pixel(0.0), pl.Pixel(1.0)), model, pictures)
    assert torch.equal(found, torch.stack([torch.full_like(pictures, -2.0), torch.full_like(pictures, 2.0)]))


def test_what_is_held_stays_each_inputs_own():
    given = {"vector": uniform(3, 2, dtype=torch.float64), "group": torch.tensor([[1, 2], [3, 0], [2, 2]])}
    rows = {"vector": uniform(4, 2, seed=5, dtype=torch.float64), "group": torch.tensor([[9, 8]] * 4)}
    x, packing = pack(given)
    with quiet(packing) as model:
        found = absent(pl.Background.of(rows), model, x)
    assert found.shape == (4, 3, 4)
    for n in range(4):
        for b in range(3):
            assert found[n, b].tolist() == [*rows["vector"][n].tolist(), *given["group"][b].tolist()]


def test_where_one_part_alone_is_explained_a_background_may_be_of_that_part():
    given = {"group": torch.tensor([[1, 2], [3, 0]]), "picture": uniform(2, 1, 2, 3, dtype=torch.float64)}
    pictures = uniform(4, 1, 2, 3, seed=5, dtype=torch.float64)
    x, packing = pack(given)
    with quiet(packing) as model:
        found = absent(pl.Background.of(pictures), model, x)
    assert found.shape == (4, 2, 8)
    for n in range(4):
        for b in range(2):
            assert found[n, b].tolist() == [*given["group"][b].tolist(), *pictures[n].flatten().tolist()]


@pytest.mark.doors
def test_where_two_parts_are_explained_a_background_is_of_both():
    x, packing = pack({"one": uniform(2, 3), "other": uniform(2, 3)})
    refused = pytest.raises(pl.ArgumentError, match=r"inputs \(6,\), but it holds \(3,\)")
    with quiet(packing) as model, refused:
        absent(pl.Background.of(uniform(4, 3)), model, x)


@pytest.mark.doors
def test_a_background_of_other_shapes_is_refused():
    with quiet() as model, pytest.raises(pl.ArgumentError, match=r"of inputs \(5,\), but it holds \(6,\)"):
        absent(pl.Background.of(uniform(4, 6)), model, X)


@pytest.mark.parametrize("own", [True, False])
def test_numbers_from_0_to_1_choose_in_equal_parts(own):
    """Baseline n of input b is the number 10 n + b; of a background all inputs have the same, 10 n."""
    starts = (10 * torch.arange(4.0)[:, None] + torch.arange(3.0) * own)[:, : 3 if own else 1, None]
    where = np.array([0.0, 0.2499, 0.25, 0.5, 0.7499, 0.75, np.nextafter(1, 0), 0.3])
    rows = torch.tensor([0, 1, 2, 0, 1, 2, 2, 2])
    expected = [0, 0, 10, 20, 20, 30, 30, 10]
    found = drawn(starts, where, rows)
    assert found.shape == (8, 1)
    assert found[:, 0].tolist() == [n + (int(b) if own else 0) for n, b in zip(expected, rows, strict=True)]


def test_a_number_that_is_rounded_to_one_takes_the_last():
    assert drawn(torch.tensor([[[1.0]], [[2.0]]]), np.array([1.0]), torch.tensor([0])).tolist() == [[2.0]]


@pytest.mark.parametrize("baselines", [pl.Background.of(ROWS), (pl.Zeros(),), (pl.Blur(), pl.Pixel(0.5))], ids=repr)
def test_a_background_or_a_tuple_of_baselines_is_taken(baselines):
    check_baselines(baselines)


@pytest.mark.doors
@pytest.mark.parametrize("wrong", [(), pl.Zeros(), [pl.Zeros()], (pl.Zeros(), 0.5), (pl.Zeros,), ROWS, None], ids=repr)
def test_nothing_else_is(wrong):
    with pytest.raises(pl.ArgumentError, match=r"`baselines` is pl.Background.of\(rows\), or a tuple such as"):
        check_baselines(wrong)

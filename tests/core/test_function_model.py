import numpy as np
import pytest
import torch
from tests.oracles import uniform

import pellucid as pl


def test_numpy_and_torch_functions_give_the_same_prediction():
    x = uniform(3, 4)
    by_numpy = pl.FunctionModel(lambda rows: rows @ np.eye(4, 2, dtype=np.float32))
    by_torch = pl.FunctionModel(lambda rows: rows @ torch.eye(4, 2), takes="torch")
    assert torch.equal(by_numpy.predict(x).outputs, by_torch.predict(x).outputs)
    assert torch.equal(by_numpy.predict(x).outputs, x[:, :2])


def test_it_is_called_with_at_most_the_micro_batch():
    sizes = []
    model = pl.FunctionModel(lambda rows: sizes.append(len(rows)) or rows, micro_batch=2)
    model.predict(uniform(5, 3))
    assert sizes == [2, 2, 1]


def test_the_function_may_write_into_what_it_gets():
    def vandal(rows):
        rows[:] = 7
        return rows

    x = uniform(2, 3)
    pl.FunctionModel(vandal).predict(x)
    assert torch.equal(x, uniform(2, 3))


def test_it_offers_scores_only():
    assert pl.FunctionModel(lambda rows: rows).offers == pl.Needs.SCORES
    with pytest.raises(pl.MissingNeed, match=r"pl.methods\(model=model\)"):
        pl.SimpleGradient()(pl.FunctionModel(lambda rows: rows), uniform(1, 3))


def test_methods_say_why_they_do_not_fit_it():
    found = pl.methods(model=pl.FunctionModel(lambda rows: rows, name="api"))
    assert "needs gradients, which api does not offer" in {r for e in found.excluded for r in e.reasons}


@pytest.mark.doors
@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda rows: rows[:1], r"Expected outputs \(B, K\) for 2 inputs"),
        (lambda rows: "no", "failed on a batch of shape .* invalid data type"),
        (lambda rows: 1 / 0, "failed on a batch of shape"),
    ],
)
def test_bad_functions_are_named(function, words):
    with pytest.raises(pl.ModelError, match=words):
        pl.FunctionModel(function).predict(uniform(2, 3))


@pytest.mark.doors
def test_what_is_no_function_is_refused():
    with pytest.raises(pl.ArgumentError, match="takes a function"):
        pl.FunctionModel(3)
    with pytest.raises(pl.ArgumentError, match="`takes` is 'numpy' or 'torch'"):
        pl.FunctionModel(len, takes="jax")

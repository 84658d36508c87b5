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


ROWS = torch.tensor([[1.0, 2.0], [3.0, 4.0]])


def read_only(rows):
    rows.flags.writeable = False
    return rows


@pytest.mark.parametrize(
    "function",
    [
        lambda rows: rows.tolist(),
        lambda rows: rows.astype(np.int64),
        lambda rows: rows.astype(np.uint8),
        lambda rows: rows.astype(np.float64),
        lambda rows: [*rows],
        lambda rows: [torch.from_numpy(row) for row in rows],
        lambda rows: [[np.float64(value) for value in row] for row in rows],
        lambda rows: torch.from_numpy(rows).double().requires_grad_(),
        lambda rows: rows[:, ::-1][:, ::-1].T.copy().T,
        lambda rows: rows[::-1][::-1, ::-1][:, ::-1],
        lambda rows: np.broadcast_to(rows, rows.shape),
        read_only,
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_whatever_holds_the_numbers_becomes_outputs_of_the_rows_type(function, dtype):
    found = pl.FunctionModel(function).predict(ROWS.to(dtype)).outputs
    assert torch.equal(found, ROWS.to(dtype))


@pytest.mark.parametrize("function", [lambda rows: rows.sum(1), lambda rows: [float(row.sum()) for row in rows]])
def test_a_number_for_each_row_is_one_output(function):
    assert pl.FunctionModel(function).predict(ROWS).outputs.tolist() == [[3.0], [7.0]]


def test_what_the_function_keeps_cannot_change_the_outputs_later():
    kept = np.zeros((2, 2), dtype=np.float32)
    outputs = pl.FunctionModel(lambda rows: kept).predict(ROWS).outputs
    kept[:] = 7
    assert not outputs.any()


@pytest.mark.doors
@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda rows: 3.0, r"Expected outputs \(B, K\) for 2 inputs, but .* returned \(\)"),
        (lambda rows: np.float64(3), r"returned \(\)"),
        (lambda rows: [], r"Expected outputs \(B, K\) for 2 inputs, but .* returned \(0, 1\)"),
        (lambda rows: rows.repeat(2, 0), r"Expected outputs \(B, K\) for 2 inputs, but .* returned \(4, 3\)"),
        (lambda rows: rows[:, :, None], r"Expected outputs \(B, K\)"),
        (lambda rows: None, "failed on a batch of shape"),
        (lambda rows: {"scores": rows}, "failed on a batch of shape"),
        (lambda rows: [[1.0], [1.0, 2.0]], "failed on a batch of shape"),
        (lambda rows: rows + 1j, "expected real numbers, but got torch.complex"),
        (lambda rows: rows[:1], r"Expected outputs \(B, K\) for 2 inputs"),
        (lambda rows: "no", "failed on a batch of shape .* can't convert np.ndarray of type numpy.str_"),
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

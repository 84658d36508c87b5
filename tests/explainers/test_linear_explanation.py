import numpy as np
import pytest
import torch
from tests.oracles import Linear, uniform
from torch import nn

import pellucid as pl


def test_a_linear_network_gives_its_weights_a_row_an_output():
    model = pl.TorchModel(Linear(uniform(3, 4)).linear, labels=["a", "b", "c"])
    a = pl.LinearExplanation()(model)
    assert torch.equal(a.scores, uniform(3, 4))
    assert [d.label for d in a.decisions] == ["a", "b", "c"]
    assert a.cost == pl.LinearExplanation().card.cost == pl.Cost(forward=2)
    assert a.standard_error is None


def test_a_network_that_is_not_linear_is_refused():
    with pytest.raises(pl.MissingNeed, match=r"one torch.nn.Linear"):
        pl.LinearExplanation()(pl.TorchModel(nn.Sequential(nn.Linear(2, 2), nn.ReLU())))


def test_a_layer_that_is_used_twice_is_not_taken_for_the_model():
    layer = Linear(uniform(3, 3)).linear
    with pytest.raises(pl.MissingNeed, match=r"its outputs are not W x \+ b"):
        pl.LinearExplanation()(pl.TorchModel(nn.Sequential(layer, layer)))


def test_labels_must_fit_the_outputs():
    with pytest.raises(pl.ArgumentError, match="one label for each of 3 outputs, but got 2"):
        pl.LinearExplanation()(pl.TorchModel(Linear(uniform(3, 4)).linear, labels=["a", "b"]))


def test_a_row_runs_again_by_itself():
    model = pl.TorchModel(Linear(uniform(3, 4)).linear)
    a = pl.LinearExplanation()(model)
    assert torch.equal(a[1].reproduce(model).scores, a.scores[1:2])


def test_a_black_box_is_refused():
    with pytest.raises(pl.MissingNeed, match=r"needs weights"):
        pl.LinearExplanation()(pl.FunctionModel(lambda rows: rows))


def test_it_agrees_with_the_gradient():
    model = pl.TorchModel(Linear(uniform(3, 4)).linear)
    gradient = pl.SimpleGradient()(model, uniform(1, 4), target=2)
    assert torch.equal(gradient.scores[0], pl.LinearExplanation()(model).scores[2])


def test_a_scikit_learn_regression_gives_its_coefficients():
    from sklearn.linear_model import LinearRegression

    x = np.array([[0.0, 0], [1, 0], [0, 1], [1, 1]])
    line = LinearRegression().fit(x, x @ [2.0, -3.0] + 1)
    np.testing.assert_allclose(pl.LinearExplanation()(pl.SklearnModel(line)).scores, [[2, -3]], atol=1e-12)

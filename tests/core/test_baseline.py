import torch
from tests.oracles import uniform

import pellucid as pl
from pellucid.core.recipe import decode, encode


def test_zeros_and_constants_fill_the_shape():
    x = uniform(2, 3, 4)
    assert torch.equal(pl.Zeros().values(x), torch.zeros(2, 3, 4))
    assert torch.equal(pl.Constant(0.5).values(x), torch.full((2, 3, 4), 0.5))


def test_the_mean_is_that_of_each_inputs_channel():
    x = uniform(2, 3, 4, 5)
    values = pl.FeatureMean().values(x)
    torch.testing.assert_close(values[1, 2], x[1, 2].mean().expand(4, 5))


def test_the_mean_of_a_vector_is_over_its_features():
    assert pl.FeatureMean().values(torch.tensor([[1.0, 3.0]])).tolist() == [[2.0, 2.0]]


def test_baselines_have_recipes():
    assert decode(encode(pl.Constant(0.5))) == pl.Constant(0.5)

import torch
from tests.oracles import stream_of, uniform

from pellucid.core.estimate import BATCHES, Estimate, batch_sizes
from pellucid.core.estimator import Mean, sample


def test_sample_i_belongs_to_batch_i_modulo_16():
    values = torch.arange(20.0).reshape(1, 20, 1)
    means = sample(stream_of(values), Mean()).batch_means
    assert means.shape == (1, BATCHES, 1)
    assert means.flatten().tolist() == [8.0, 9.0, 10.0, 11.0, *range(4, 16)]


def test_batches_are_as_even_as_can_be():
    assert batch_sizes(20).tolist() == [2] * 4 + [1] * 12
    assert batch_sizes(3).tolist() == [1] * 3 + [0] * 13


def test_an_empty_batch_has_a_mean_of_zero():
    means = sample(stream_of(torch.ones(1, 3, 2)), Mean()).batch_means
    assert means[0].sum(1).tolist() == [2.0] * 3 + [0.0] * 13


def test_of_stacked_draws_the_plain_ones_are_in_the_batches():
    """(1, 16, 2, *features): plain and factored."""
    state = {"batch_sums": torch.stack([torch.full((1, 16, 4), 3.0), torch.zeros(1, 16, 4)], 2)}
    state["draws"] = torch.tensor([48])
    assert Estimate(torch.zeros(1, 4), state=state).batch_means.unique().tolist() == [1.0]


def test_a_map_that_is_computed_has_nothing_of_a_sampled_one():
    exact = Estimate.exact(uniform(2, 3))
    assert (exact.standard_error, exact.error, exact.batch_means) == (None, None, None)
    assert (exact.samples, exact.stopped) == ((0, 0), ("nothing is sampled",) * 2)


def test_a_row_is_the_estimate_of_one_input():
    values = uniform(3, 20, 4)
    whole, alone = sample(stream_of(values), Mean()), sample(stream_of(values[1:2]), Mean())
    row = whole.row(1)
    assert torch.equal(row.values, alone.values)
    assert torch.equal(row.standard_error, alone.standard_error)
    assert torch.equal(row.batch_means, alone.batch_means)
    assert (row.samples, row.stopped, row.error) == (alone.samples, alone.stopped, alone.error)

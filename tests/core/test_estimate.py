import numpy as np
import pytest
import torch
from tests.oracles import uniform

from pellucid.core.estimate import BATCHES, Mean, Samples, Variance


def stream_of(values: torch.Tensor, at_once: int = 7) -> Samples:
    """Samples (inputs, count, *features) that are already there."""
    return Samples(
        len(values), values.shape[1], at_once, lambda chosen, indices: values[chosen, indices.start : indices.stop],
        lambda done, total: None,
    )  # fmt: skip


def test_mean_and_its_standard_error_are_those_of_numpy():
    values = uniform(2, 23, 3, 4)
    estimate = Mean().estimate(stream_of(values))
    expected = values.double().numpy()
    np.testing.assert_allclose(estimate.values, expected.mean(1), rtol=1e-6)
    np.testing.assert_allclose(estimate.standard_error, expected.std(1, ddof=1) / np.sqrt(23), rtol=1e-5)


def test_variance_and_its_standard_error_follow_their_formulas():
    values = uniform(2, 23, 3) ** 3
    estimate = Variance().estimate(stream_of(values))
    v = values.double().numpy()
    s2 = v.var(1, ddof=1)
    m4 = ((v - v.mean(1, keepdims=True)) ** 4).mean(1)
    np.testing.assert_allclose(estimate.values, s2, rtol=1e-5)
    np.testing.assert_allclose(estimate.standard_error, np.sqrt((m4 - 20 / 22 * s2**2) / 23), rtol=1e-5)


def test_a_large_offset_costs_no_digits():
    """E[g^2] - E[g]^2 in float32 would give noise here; Welford in float64 does not."""
    spread = uniform(1, 50, 4, dtype=torch.float64)
    estimate = Variance().estimate(stream_of(spread + 1e6))
    np.testing.assert_allclose(estimate.values, spread.var(1, unbiased=True), rtol=1e-8)


@pytest.mark.parametrize("at_once", [1, 2, 3, 7, 16, 1000])
def test_the_grouping_of_samples_changes_no_bit(at_once):
    values = uniform(3, 17, 5)
    one, other = Mean().estimate(stream_of(values, 4)), Mean().estimate(stream_of(values, at_once))
    assert torch.equal(one.values, other.values)
    assert torch.equal(one.standard_error, other.standard_error)


def test_samples_are_added_in_the_order_of_their_index():
    """1 + 1e16 - 1e16 depends on the order; in order of the index the running mean is reproducible to the bit."""
    values = torch.tensor([[1.0, 1e16, -1e16, 3.0]], dtype=torch.float64)[..., None]
    mean = 0.0
    for n, value in enumerate(values.flatten().tolist(), 1):
        mean += (value - mean) / n
    assert float(Mean().estimate(stream_of(values, 2)).values) == mean


def test_a_single_sample_has_no_standard_error():
    estimate = Mean().estimate(stream_of(uniform(1, 1, 4)))
    assert estimate.standard_error is None
    assert estimate.samples == (1,)


def test_sample_i_belongs_to_batch_i_modulo_16():
    values = torch.arange(20.0).reshape(1, 20, 1)
    means = Mean().estimate(stream_of(values)).batch_means
    assert means.shape == (1, BATCHES, 1)
    assert means.flatten().tolist() == [8.0, 9.0, 10.0, 11.0, *range(4, 16)]


def test_calls_are_as_few_and_as_even_as_fit():
    sizes = []

    def compute(chosen: slice, indices: range) -> torch.Tensor:
        sizes.append((chosen.stop - chosen.start, len(indices)))
        return torch.zeros(chosen.stop - chosen.start, len(indices), 1)

    Mean().estimate(Samples(1, 50, 12, compute, lambda done, total: None))
    assert sizes == [(1, 10)] * 5


def test_a_call_never_holds_more_than_fits():
    sizes = []

    def compute(chosen: slice, indices: range) -> torch.Tensor:
        sizes.append((chosen.stop - chosen.start) * len(indices))
        return torch.zeros(chosen.stop - chosen.start, len(indices), 1)

    Mean().estimate(Samples(7, 50, 12, compute, lambda done, total: None))
    assert max(sizes) <= 12
    assert sum(sizes) == 350


def test_many_inputs_share_a_call():
    sizes = []

    def compute(chosen: slice, indices: range) -> torch.Tensor:
        sizes.append((chosen.stop - chosen.start) * len(indices))
        return torch.zeros(chosen.stop - chosen.start, len(indices), 1)

    Mean().estimate(Samples(6, 4, 12, compute, lambda done, total: None))
    assert sizes == [12, 12]


def test_progress_counts_every_sample_once():
    seen = []
    values = uniform(3, 10, 2)
    samples = Samples(
        3, 10, 4, lambda c, i: values[c, i.start : i.stop], lambda done, total: seen.append((done, total))
    )
    Mean().estimate(samples)
    assert seen[-1] == (30, 30)
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})


def test_state_holds_the_moments_in_float64():
    state = Variance().estimate(stream_of(uniform(1, 9, 2))).state
    assert set(state) == {"mean", "m2", "m3", "m4"}
    assert all(part.dtype == torch.float64 for part in state.values())


def test_coverage_of_intervals_of_mean_and_variance():
    """1000 fixed seeds each: Student's t intervals of the mean of normal samples cover 95 %."""
    from scipy.stats import t

    rng = np.random.default_rng(0)
    values = torch.from_numpy(rng.standard_normal((1000, 20, 1)))
    mean = Mean().estimate(stream_of(values))
    half = t.ppf(0.975, 19) * mean.standard_error
    assert 0.93 <= float((mean.values.abs() <= half).double().mean()) <= 0.97
    # The variance of 400 samples is near enough to normal for the same interval.
    many = torch.from_numpy(rng.standard_normal((1000, 400, 1)))
    variance = Variance().estimate(stream_of(many, 1000))
    half = t.ppf(0.975, 399) * variance.standard_error
    assert 0.93 <= float(((variance.values - 1).abs() <= half).double().mean()) <= 0.97

import numpy as np
import pytest
import torch
from tests.oracles import stream_of, uniform

import pellucid as pl
from pellucid.core.estimator import Antithetic, Mean, Variance, sample


def test_mean_and_its_standard_error_are_those_of_numpy():
    values = uniform(2, 23, 3, 4)
    estimate = sample(stream_of(values), Mean())
    expected = values.double().numpy()
    np.testing.assert_allclose(estimate.values, expected.mean(1), rtol=1e-6)
    np.testing.assert_allclose(estimate.standard_error, expected.std(1, ddof=1) / np.sqrt(23), rtol=1e-5)


def test_variance_and_its_standard_error_follow_their_formulas():
    values = uniform(2, 23, 3) ** 3
    estimate = sample(stream_of(values), Variance())
    v = values.double().numpy()
    s2 = v.var(1, ddof=1)
    m4 = ((v - v.mean(1, keepdims=True)) ** 4).mean(1)
    np.testing.assert_allclose(estimate.values, s2, rtol=1e-5)
    np.testing.assert_allclose(estimate.standard_error, np.sqrt((m4 - 20 / 22 * s2**2) / 23), rtol=1e-5)


def test_a_large_offset_costs_no_digits():
    """E[g^2] - E[g]^2 in float32 would give noise here; Welford in float64 does not."""
    spread = uniform(1, 50, 4, dtype=torch.float64)
    estimate = sample(stream_of(spread + 1e6), Variance())
    np.testing.assert_allclose(estimate.values, spread.var(1, unbiased=True), rtol=1e-8)


@pytest.mark.parametrize("at_once", [1, 2, 3, 7, 16, 1000])
def test_the_grouping_of_samples_changes_no_bit(at_once):
    values = uniform(3, 17, 5)
    one, other = (sample(stream_of(values, rows), Mean()) for rows in (4, at_once))
    assert torch.equal(one.values, other.values)
    assert torch.equal(one.standard_error, other.standard_error)


def test_samples_are_added_in_the_order_of_their_index():
    """1 + 1e16 - 1e16 depends on the order; in order of the index the running mean is reproducible to the bit."""
    values = torch.tensor([[1.0, 1e16, -1e16, 3.0]], dtype=torch.float64)[..., None]
    mean = 0.0
    for n, value in enumerate(values.flatten().tolist(), 1):
        mean += (value - mean) / n
    assert float(sample(stream_of(values, 2), Mean()).values) == mean


def test_a_single_sample_has_no_standard_error():
    estimate = sample(stream_of(uniform(1, 1, 4)), Mean())
    assert estimate.standard_error is None
    assert estimate.samples == (1,)


def sizes_of_calls(inputs: int, count: int, rows: int) -> list[int]:
    sizes = []
    values = torch.zeros(inputs, count, 1)
    sample(stream_of(values, rows, seen=lambda chosen, draws: sizes.append(len(chosen) * len(draws))), Mean())
    return sizes


def test_calls_are_as_few_and_as_even_as_fit():
    assert sizes_of_calls(1, 50, 12) == [10] * 5


def test_a_call_never_holds_more_than_fits():
    sizes = sizes_of_calls(7, 50, 12)
    assert max(sizes) <= 12
    assert sum(sizes) == 350


def test_many_inputs_share_a_call():
    assert sizes_of_calls(6, 4, 12) == [12, 12]
    assert sizes_of_calls(64, 8, 512) == [512]


def test_progress_counts_every_sample_once():
    seen = []
    report = lambda done, total, error: seen.append((done, total))  # noqa: E731
    sample(stream_of(uniform(3, 10, 2), 4, report=report), Mean())
    assert seen[-1] == (30, 30)
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})


def test_state_holds_the_moments_in_float64():
    state = sample(stream_of(uniform(1, 9, 2)), Variance()).state
    assert set(state) == {"mean", "m2", "m3", "m4", "draws", "stop"}
    assert all(state[name].dtype == torch.float64 for name in ("mean", "m2", "m3", "m4"))


def test_coverage_of_intervals_of_mean_and_variance():
    """1000 fixed seeds each: Student's t intervals of the mean of normal samples cover 95 %."""
    from scipy.stats import t

    rng = np.random.default_rng(0)
    values = torch.from_numpy(rng.standard_normal((1000, 20, 1)))
    mean = sample(stream_of(values), Mean())
    half = t.ppf(0.975, 19) * mean.standard_error
    assert 0.93 <= float((mean.values.abs() <= half).double().mean()) <= 0.97
    # The variance of 400 samples is near enough to normal for the same interval.
    many = torch.from_numpy(rng.standard_normal((1000, 400, 1)))
    variance = sample(stream_of(many, 1000), Variance())
    half = t.ppf(0.975, 399) * variance.standard_error
    assert 0.93 <= float(((variance.values - 1).abs() <= half).double().mean()) <= 0.97


def test_the_estimated_error_of_a_mean_is_its_squared_error_over_the_signals_power():
    values = uniform(2, 30, 500) + 0.2
    estimate = sample(stream_of(values), Mean())
    noise = values.double().var(1, unbiased=True).mean(1) / 30
    power = values.double().mean(1).square().mean(1) - noise
    torch.testing.assert_close(estimate.error, (noise / power).sqrt(), rtol=1e-6, atol=0)


def test_the_estimated_error_is_the_true_one():
    """Signal of power 1, noise of variance 4 and n = 50: a squared error of 0.08."""
    rng = np.random.default_rng(1)
    truth = rng.standard_normal((40, 1, 400))
    values = torch.from_numpy(truth + 2 * rng.standard_normal((40, 50, 400)))
    estimate = sample(stream_of(values), Mean())
    power = (truth[:, 0] ** 2).mean(1)
    true = np.sqrt(((estimate.values.numpy() - truth[:, 0]) ** 2).mean(1) / power)
    assert abs(np.median(true / estimate.error.numpy()) - 1) < 0.02


def noisy(inputs: int, count: int, *, signal: float, features: int = 300, seed: int = 0) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    values = signal * rng.standard_normal((inputs, 1, features)) + rng.standard_normal((inputs, count, features))
    return torch.from_numpy(values)


def test_sampling_stops_once_the_error_is_reached():
    """Noise of 1 over a signal of 0.5: the error is 2 / sqrt(n), so 0.3 takes 44 samples; 54 is looked at."""
    until = pl.Until(error=0.3, at_most=500)
    estimate = sample(stream_of(noisy(1, 500, signal=0.5), 7, until), Mean())
    assert estimate.samples == (54,)
    assert 0.2 < float(estimate.error) <= 0.3
    assert estimate.stopped[0].startswith("error 0.2")
    assert estimate.stopped[0].endswith("after 54 samples, at most 0.3 was asked for")


def test_inputs_that_have_converged_leave_the_batch():
    values = torch.cat([noisy(1, 300, signal=s, seed=int(10 * s)) for s in (0.25, 3.0, 0.6)])
    calls = []
    until = pl.Until(error=0.3, at_most=300)
    seen = lambda inputs, draws: calls.append((tuple(inputs), draws))  # noqa: E731
    together = sample(stream_of(values, 512, until, seen=seen), Mean())
    assert together.samples[1] == 16 < together.samples[2] < together.samples[0]
    assert calls[0][0] == (0, 1, 2)
    assert all(1 not in inputs for inputs, draws in calls if draws.stop > 16)
    for i in range(3):
        alone = sample(stream_of(values[i : i + 1], 512, until), Mean())
        assert torch.equal(together.values[i], alone.values[0])
        assert (together.samples[i], together.stopped[i]) == (alone.samples[0], alone.stopped[0])


def test_the_result_of_a_stop_is_that_of_so_many_samples():
    values = noisy(2, 200, signal=0.6)
    until = sample(stream_of(values, 5, pl.Until(error=0.3, at_most=200)), Mean())
    counted = sample(stream_of(values, 5, until.samples[0]), Mean())
    assert torch.equal(until.values, counted.values)
    assert torch.equal(until.standard_error, counted.standard_error)


def test_noise_alone_never_converges():
    """ "No signal yet", whatever the error asked for: of 100 runs at most a few by chance, checked at one look."""
    verdicts = [
        sample(stream_of(noisy(1, 40, signal=0.0, seed=seed), 64, pl.Until(error=5.0, at_most=16)), Mean()).stopped[0]
        for seed in range(100)
    ]
    assert sum(v == "no signal yet after 16 samples, the most that were allowed" for v in verdicts) >= 95


def test_at_the_most_samples_it_says_how_many_more_would_have_been_needed():
    """The error is 1 / (0.5 sqrt(n)): 0.2 takes 100 samples, 60 more than 40."""
    estimate = sample(stream_of(noisy(1, 40, signal=0.5, features=20000), 64, pl.Until(error=0.2, at_most=40)), Mean())
    words = estimate.stopped[0]
    assert words.startswith("error 0.32 after 40 samples, the most that were allowed; for 0.2 about ")
    needed = int(words.split("about ")[1].split()[0])
    assert abs(needed - 60) < 6


def test_samples_that_all_agree_stop_at_once_with_no_error():
    estimate = sample(stream_of(torch.ones(1, 100, 4), 7, pl.Until(error=0.01, at_most=100)), Mean())
    assert (estimate.samples, float(estimate.error)) == ((16,), 0.0)


def test_the_cost_at_most_counts_what_is_taken_after_the_stop():
    once = pl.Cost(forward=1, backward=1)
    assert Mean().cost(once, pl.Until(error=0.3, at_most=100, further=30)) == once * 130
    assert pl.Antithetic().cost(once, pl.Until(error=0.3, at_most=100, further=3)) == once * 104


def test_further_samples_are_taken_after_the_stop():
    values = noisy(3, 200, signal=1.0)
    first = sample(stream_of(values, 9, pl.Until(error=0.3, at_most=100)), Mean())
    more = sample(stream_of(values, 9, pl.Until(error=0.3, at_most=100, further=30)), Mean())
    assert more.samples == tuple(n + 30 for n in first.samples)
    assert all(words.endswith("; then 30 more") for words in more.stopped)


@pytest.mark.parametrize("estimator", [Mean(), Variance(), Antithetic()])
@pytest.mark.parametrize("taken", [2, 16, 17, 48])
def test_adding_to_an_earlier_estimate_equals_one_long_run(estimator, taken):
    values = uniform(3, 60, 5)
    size = estimator.how(1).size
    earlier = sample(stream_of(values, 8, taken * size), estimator)
    computed = []
    seen = lambda inputs, draws: computed.append(draws)  # noqa: E731
    longer = sample(stream_of(values, 8, 60 * size, earlier=earlier, seen=seen), estimator)
    whole = sample(stream_of(values, 8, 60 * size), estimator)
    assert torch.equal(longer.values, whole.values)
    assert torch.equal(longer.standard_error, whole.standard_error)
    assert longer.samples == whole.samples
    assert {index for draws in computed for index in draws} == set(range(taken, 60))
    assert all(torch.equal(longer.state[name], part) for name, part in whole.state.items())


def test_inputs_of_different_lengths_go_on_each_from_its_own():
    values = torch.cat([noisy(1, 300, signal=s) for s in (0.3, 3.0)])
    earlier = sample(stream_of(values, 64, pl.Until(error=0.4, at_most=300)), Mean())
    assert len(set(earlier.samples)) == 2
    tighter = pl.Until(error=0.2, at_most=300)
    longer, whole = sample(stream_of(values, 64, tighter, earlier=earlier), Mean()), None
    whole = sample(stream_of(values, 64, tighter), Mean())
    assert longer.samples == whole.samples
    assert torch.equal(longer.values, whole.values)


def test_the_coverage_of_intervals_after_an_early_stop_is_measured():
    """1000 runs that stop by themselves at 16, 24 or 36: stopping early costs the intervals little."""
    from scipy.stats import t

    rng = np.random.default_rng(2)
    truth = rng.standard_normal((1000, 1, 10))
    values = torch.from_numpy(truth + 2.5 * rng.standard_normal((1000, 60, 10)))
    estimate = sample(stream_of(values, 512, pl.Until(error=0.5, at_most=60)), Mean())
    n = np.array(estimate.samples)
    assert len(set(n)) > 2
    half = torch.from_numpy(t.ppf(0.975, n - 1))[:, None] * estimate.standard_error
    inside = (estimate.values - torch.from_numpy(truth[:, 0])).abs() <= half
    assert 0.93 <= float(inside.double().mean()) <= 0.97

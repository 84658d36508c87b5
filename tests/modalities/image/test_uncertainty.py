"""The test of blocks for signal beyond the sampling error: against brute force, and on maps of pure noise."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import binom
from tests.oracles import Linear, Quadratic, stream_of, uniform
from threadpoolctl import threadpool_limits

import pellucid as pl
from pellucid.core.estimator import Mean, sample
from pellucid.modalities.image.uncertainty import can_tell, certain_blocks, certain_places, sign_flip_p_values

BASE = pl.SimpleGradient()(pl.TorchModel(Linear(torch.ones(1, 3))), uniform(1, 3))  # only its estimate is replaced


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Hundreds of small products: threads that wait for each other would take most of the time."""
    with threadpool_limits(1):
        yield


def sampled(samples: torch.Tensor) -> pl.Attribution:
    """The attribution that is the mean of these samples (n, C, H, W), through the estimator."""
    return replace(BASE, estimate=sample(stream_of(samples[None]), Mean()))


def noise(n: int, *shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, *shape, generator=torch.Generator().manual_seed(seed))


def brute_force(sums: np.ndarray, block: int) -> np.ndarray:
    """Every sign pattern of every block, one by one: the share whose sum has at least the power found."""
    k, _, high, wide = sums.shape
    rows, columns = range(0, high, block), range(0, wide, block)
    result = np.zeros((len(rows), len(columns)))
    for (i, top), (j, left) in itertools.product(enumerate(rows), enumerate(columns)):
        part = sums[:, :, top : top + block, left : left + block]
        powers = [
            (np.tensordot(signs, part, 1) ** 2).sum() for signs in itertools.product((1.0, -1.0), repeat=k)
        ]  # the first pattern flips nothing
        result[i, j] = np.mean([power >= powers[0] * (1 - 1e-9) for power in powers])
    return result


@pytest.mark.parametrize("k", [2, 3, 6])
def test_p_values_are_those_of_brute_force_also_in_blocks_cut_by_an_edge(k):
    sums = np.random.default_rng(k).standard_normal((k, 2, 5, 7)) + 0.3
    found = sign_flip_p_values(sums, 3)
    assert found.shape == (2, 3)
    np.testing.assert_allclose(found, brute_force(sums, 3), rtol=0, atol=1e-12)


def test_two_batches_that_agree_have_p_one_half_and_two_that_disagree_one():
    """Of the patterns ++ and +- only the first reaches (1 + 1)^2; both reach (1 - 1)^2."""
    agree, disagree = np.ones((2, 1, 1, 1)), np.array([1.0, -1.0]).reshape(2, 1, 1, 1)
    assert sign_flip_p_values(agree, 1) == [[0.5]]
    assert sign_flip_p_values(disagree, 1) == [[1.0]]


def test_sixteen_batches_that_agree_have_the_least_p_there_is():
    """One pattern of 2^15."""
    assert sign_flip_p_values(np.ones((16, 1, 1, 1)), 1) == [[2.0**-15]]


def test_a_single_batch_shows_nothing():
    assert sign_flip_p_values(np.full((1, 3, 4, 4), 9.0), 2).tolist() == [[1.0, 1.0], [1.0, 1.0]]


def test_the_size_of_the_values_does_not_matter():
    sums = np.random.default_rng(0).standard_normal((8, 3, 8, 8)) + 0.3
    p = sign_flip_p_values(sums, 4)
    np.testing.assert_array_equal(sign_flip_p_values(sums * 2.0**-60, 4), p)
    np.testing.assert_array_equal(sign_flip_p_values(sums * 2.0**60, 4), p)


def test_channels_that_differ_do_not_cancel():
    """A signal of +1 in one channel and -1 in another is signal: powers add, values would not."""
    samples = 0.1 * noise(16, 2, 8, 8)
    samples[:, 0] += 1
    samples[:, 1] -= 1
    assert certain_blocks(sampled(samples)).share == 1


def test_a_strong_block_passes_alone():
    """The signal stands in rows 8 .. 15, columns 16 .. 23: the block (1, 2)."""
    samples = noise(50, 3, 32, 32, seed=1)
    samples[:, :, 8:16, 16:24] += 1
    expected = np.zeros((32, 32), dtype=bool)
    expected[8:16, 16:24] = True
    found = certain_blocks(sampled(samples))
    np.testing.assert_array_equal(found.pixels, expected)
    assert found.share == 1 / 16


def test_a_signal_of_either_sign_passes():
    samples = noise(50, 3, 16, 16, seed=2)
    samples[:, :, :8, :8] += 1
    samples[:, :, 8:, 8:] -= 1
    assert certain_blocks(sampled(samples)).pixels[::8, ::8].tolist() == [[True, False], [False, True]]


def test_more_samples_colour_more_blocks():
    """A signal of 0.08 under noise of 1, in every block."""
    shares = [certain_blocks(sampled(noise(n, 3, 64, 64) + 0.08)).share for n in (16, 50, 200)]
    assert shares[0] < 0.25 < shares[1] < shares[2]


@pytest.mark.parametrize(("high", "wide"), [(13, 21), (8, 9), (5, 3), (1, 40)])
def test_sizes_that_are_no_multiples_of_the_block_keep_their_size(high, wide):
    samples = noise(50, 3, high, wide)
    samples[:, :, -1, -1] += 5  # in the block that is cut off by both edges
    found = certain_blocks(sampled(samples), rate=0.001).pixels  # none by chance
    expected = np.zeros((high, wide), dtype=bool)
    expected[(high - 1) // 8 * 8 :, (wide - 1) // 8 * 8 :] = True
    np.testing.assert_array_equal(found, expected)


def test_batches_of_unequal_size_count_by_their_samples():
    """Of 17 samples the first batch has two. Sample i belongs to batch i mod 16."""
    samples = noise(17, 1, 2, 2, seed=3) + 0.2
    sums = np.stack([samples[b::16].sum(0).double().numpy() for b in range(16)])
    means = sums / np.array([2.0] + 15 * [1.0])[:, None, None, None]
    right, wrong = sign_flip_p_values(sums, 2).item(), sign_flip_p_values(means, 2).item()
    assert right != pytest.approx(wrong, rel=0.1)
    for rate, passes in ((right * 1.0001, True), (right * 0.9999, False)):
        assert certain_blocks(sampled(samples), block=2, rate=rate).pixels.all() == passes


def test_p_values_of_pure_noise_are_uniform():
    """Over 1024 blocks the share under any rate is the rate, within three standard deviations of a count."""
    a = pl.SmoothGrad(n_samples=50, noise_level=pl.NoiseLevel.absolute(1.0))(
        pl.TorchModel(Quadratic(torch.linspace(-2, 2, 3 * 256 * 256))), torch.zeros(1, 3, 256, 256), target=1
    )
    sums = a.estimate.batch_means[0].double().numpy() * np.array([4.0] * 2 + [3.0] * 14)[:, None, None, None]
    p = sign_flip_p_values(sums, 8).ravel()
    for rate in (0.01, 0.05, 0.25, 0.5, 0.75):
        assert abs((p <= rate).mean() - rate) < 3 * np.sqrt(rate * (1 - rate) / len(p))


@pytest.mark.parametrize("n", [50, 16])
def test_pure_noise_colours_a_block_in_at_most_5_percent_of_200_runs(n):
    """The discovery rate of a map without signal is the chance of any block at all."""
    runs = [certain_blocks(sampled(noise(n, 3, 32, 32, seed=seed))).pixels.any() for seed in range(200)]
    assert np.mean(runs) <= 0.05


def pure_noise_by_smooth_grad(n: int, seeds: range) -> float:
    """The share of runs with a coloured block, where f = sum c x^2 / 2 at x = 0: the gradient c e is noise alone."""
    model, x = pl.TorchModel(Quadratic(torch.linspace(-2, 2, 3 * 32 * 32))), torch.zeros(1, 3, 32, 32)
    level = pl.NoiseLevel.absolute(1.0)
    maps = (pl.SmoothGrad(n_samples=n, noise_level=level, seed=seed)(model, x, target=1) for seed in seeds)
    return float(np.mean([certain_blocks(a).pixels.any() for a in maps]))


@pytest.mark.parametrize("n", [50, 16])
def test_smooth_grad_of_pure_noise_colours_a_block_no_more_often_than_a_true_rate_of_5_percent_would(n):
    """5 % is the exact rate: of 200 runs nearly half of all sets of seeds have more. See the 2000 runs below."""
    assert pure_noise_by_smooth_grad(n, range(200)) * 200 <= binom.ppf(0.99, 200, 0.05)


@pytest.mark.slow
@pytest.mark.parametrize("n", [50, 16])
def test_smooth_grad_of_pure_noise_colours_a_block_in_at_most_5_percent_of_2000_runs(n):
    assert pure_noise_by_smooth_grad(n, range(2000)) <= 0.05


def test_a_higher_rate_lets_more_pass():
    a = sampled(noise(50, 3, 64, 64) + 0.08)
    assert certain_blocks(a, rate=0.01).share < certain_blocks(a, rate=0.2).share


@pytest.mark.filterwarnings("error")
def test_what_is_not_finite_is_never_certain():
    samples = 0.01 * noise(50, 3, 16, 16) + 1
    samples[7, 1, 3, 4] = float("nan")
    samples[9, 0, 12, 12] = float("inf")
    assert certain_blocks(sampled(samples)).pixels[::8, ::8].tolist() == [[False, True], [True, False]]


def test_a_map_of_zeros_is_not_certain():
    assert certain_blocks(sampled(torch.zeros(50, 3, 16, 16))).share == 0


def test_the_caption_says_what_was_tested_and_what_grey_does_not_mean():
    assert certain_blocks(sampled(noise(50, 3, 8, 8))).caption == (
        "sampling error only, n = 50, false discovery rate 5 %; more samples colour more blocks; "
        "grey does not mean unimportant"
    )
    assert "n = 20, false discovery rate 2.5 %;" in certain_blocks(sampled(noise(20, 3, 8, 8)), rate=0.025).caption


@pytest.mark.doors
@pytest.mark.parametrize("explain", [pl.SimpleGradient(), pl.SmoothGrad.zennit(), pl.VarGrad(n_samples=4)])
def test_a_map_without_independent_batches_is_refused(explain):
    a = explain(pl.TorchModel(Linear(uniform(2, 48))), uniform(1, 3, 4, 4))
    with pytest.raises(pl.ArgumentError, match=f"{type(explain).__name__} with these settings keeps none"):
        certain_blocks(a)


@pytest.mark.doors
def test_several_images_and_maps_that_are_no_images_are_refused():
    model = pl.TorchModel(Linear(uniform(2, 48)))
    for shape in ((2, 3, 4, 4), (1, 48)):
        a = pl.SmoothGrad(n_samples=2)(model, uniform(*shape))
        with pytest.raises(pl.ArgumentError, match=r"one image's map \(1, C, H, W\)"):
            certain_blocks(a)


@pytest.mark.doors
@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"block": 0}, "`block` is a whole number, 1 or more. Got 0"),
        ({"rate": 0}, "`rate` is the expected share of false blocks, between 0 and 1. Got 0"),
        ({"rate": 5}, "Got 5"),
        ({"rate": float("nan")}, "Got nan"),
    ],
)
def test_wrong_settings_say_what_was_expected_and_what_came(wrong, words):
    with pytest.raises(pl.ArgumentError, match=words):
        certain_blocks(sampled(noise(16, 3, 8, 8)), **wrong)


SIZES = np.bitwise_count(np.arange(2**16))


def of_segments(seed: int, *, effect: float = 0.0) -> pl.Attribution:
    """Shapley values of 16 segments that have none, or nearly so: sets of 4 to 12 have scores of chance, which differ
    for each set. The first segment may have an effect of its own.
    """
    game = np.where((SIZES >= 4) & (SIZES <= 12), np.random.default_rng(seed).normal(size=2**16), 0.0)

    def function(rows: np.ndarray) -> np.ndarray:
        present = rows[:, 0, ::2, ::2].reshape(len(rows), 16) > 0.5
        return game[present @ (1 << np.arange(16))] + effect * present[:, 0]

    explain = pl.KernelSHAP(segments=pl.Patches(4), baseline=pl.Zeros(), budget=400, seed=seed)
    return explain(pl.FunctionModel(function, output="regression"), torch.ones(1, 1, 8, 8))


def test_a_segment_that_counts_is_told_from_its_error_and_covers_its_places():
    found = certain_places(of_segments(0, effect=30.0))
    assert found.pixels[:2, :2].all()
    assert found.pixels.shape == (8, 8)
    assert "segment by segment" in found.caption


@pytest.mark.parametrize(("errors", "certain"), [(12.0, False), (13.0, True)])  # 12.7 of one degree of freedom
def test_a_segment_passes_beyond_the_two_sided_quantile(errors, certain):
    model = pl.FunctionModel(lambda rows: rows.mean((1, 2, 3)), output="regression")
    a = pl.KernelSHAP(segments=pl.Patches(1), baseline=pl.Zeros())(model, torch.ones(1, 1, 4, 4))
    told = replace(a.estimate, standard_error=a.scores / errors)
    assert certain_places(replace(a, estimate=told)).pixels.all() == certain


def test_segments_of_chance_are_coloured_as_seldom_as_the_rate_says():
    """Some segment passes in 5 % of maps of chance; the jackknife's errors are a little large, so no more often."""
    hits = sum(bool(certain_places(of_segments(seed)).pixels.any()) for seed in range(200))
    assert hits <= binom.ppf(0.99, 200, 0.05)


def test_exact_values_are_certain_where_they_are_not_zero():
    model = pl.FunctionModel(lambda rows: rows[:, 0, 0, 0] * 2.0, output="regression")
    a = pl.KernelSHAP(segments=pl.Patches(2), baseline=pl.Zeros())(model, torch.ones(1, 1, 4, 4))
    assert certain_places(a).pixels.tolist() == [[True, True, False, False]] * 2 + [[False] * 4] * 2


def test_large_exact_values_are_certain_too():
    model = pl.FunctionModel(lambda rows: rows[:, 0, 0, 0] * 1e6, output="regression")
    a = pl.KernelSHAP(segments=pl.Patches(2), baseline=pl.Zeros())(model, torch.ones(1, 1, 4, 4))
    assert certain_places(a).pixels[0].tolist() == [True, True, False, False]


def test_maps_of_copies_are_tested_block_by_block_as_before():
    a = sampled(noise(50, 3, 16, 16) + 0.5)
    assert np.array_equal(certain_places(a).pixels, certain_blocks(a).pixels)


def test_what_is_not_sampled_cannot_be_told():
    model = pl.FunctionModel(lambda rows: rows.mean((1, 2, 3)), output="regression")
    assert not can_tell(pl.Occlusion()(model, uniform(1, 1, 8, 8)))
    assert can_tell(of_segments(0))

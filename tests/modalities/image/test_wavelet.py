"""Maps in bands and colours, and back: exactly, whatever their size."""

import numpy as np
import pytest
import torch

import pellucid as pl
from pellucid.core.estimate import batch_sizes
from pellucid.modalities.image.wavelet import Colours, check_image, forward, groups_of, inverse, kept

EPS = float(np.finfo(np.float64).eps)
FILTER = 1e-11  # PyWavelets writes the filters of sym4 with twelve digits or so, at each of up to four levels


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


# --- bands

TINY = [(h, w) for h in range(1, 10) for w in (1, 5, 8, 9)]


@pytest.mark.parametrize("size", [*TINY, (13, 14), (14, 14), (15, 17), (31, 33), (40, 28), (57, 130), (112, 112)])
def test_a_map_comes_back_from_its_bands(size):
    for channels in (1, 3, 4):
        map_ = normal(channels, *size)
        again = inverse(forward(map_), map_.shape)
        np.testing.assert_allclose(again, map_, rtol=0, atol=10 * FILTER * np.abs(map_).max())


def test_maps_in_single_precision_come_back_as_exactly_as_that_allows():
    maps = normal(5, 3, 33, 47).astype(np.float32)
    again = np.stack([inverse([band[i] for band in forward(maps)], maps.shape[1:]) for i in range(5)])
    assert again.dtype == np.float32
    np.testing.assert_allclose(again, maps, rtol=0, atol=100 * np.finfo(np.float32).eps)


@pytest.mark.parametrize(
    ("size", "levels"), [((13, 99), 0), ((14, 14), 1), ((32, 40), 2), ((56, 500), 3), ((112, 112), 4), ((224, 448), 4)]
)
def test_there_are_three_bands_for_each_of_four_levels_at_the_most_and_one_for_the_rest(size, levels):
    """The coarsest first: each level has half the resolution of the one before it in the picture."""
    bands = forward(np.zeros((1, *size)))
    assert len(bands) == 1 + 3 * levels
    heights = [band.shape[-2] for band in bands]
    assert heights == sorted(heights)
    assert bands[0].shape == bands[min(1, len(bands) - 1)].shape


def test_the_transform_is_linear_and_keeps_the_power_of_what_is_off_the_edges():
    """An orthonormal basis but for the reflections."""
    one, other = normal(64, 64), normal(64, 64, seed=1)
    for left, right, both in zip(forward(one), forward(other), forward(2 * one - 3 * other), strict=True):
        np.testing.assert_allclose(both, 2 * left - 3 * right, rtol=0, atol=1e3 * EPS)
    inner = np.zeros((128, 128))
    inner[60:68, 60:68] = normal(8, 8)
    bands = [(band**2).sum() for band in forward(inner[10:-10, 10:-10])]
    np.testing.assert_allclose(sum(bands), (inner**2).sum(), rtol=1e-6)


def test_edges_are_continued_by_reflection():
    """A map that is the same everywhere has no details, and one that is a ramp to the edge none but small ones."""
    first, *details = forward(np.full((1, 33, 20), 3.0))
    assert max(np.abs(band).max() for band in details) < FILTER
    np.testing.assert_allclose(first, first.mean(), rtol=FILTER)
    ramp = np.broadcast_to(np.arange(64.0), (64, 64))
    assert max(np.abs(band).max() for band in forward(ramp)[1:]) < 20  # a jump to 0, or back, gives 75 and more


# --- groups


@pytest.mark.parametrize("draws", [1, 2, 7, 8, 9, 16, 17, 50])
def test_draw_i_is_of_group_i_mod_8(draws):
    values = normal(draws, 2, 3)
    sums = np.zeros((16, 2, 3))
    for i, value in enumerate(values):
        sums[i % 16] += value
    means, counts = groups_of(torch.from_numpy(sums), draws)
    assert len(means) == len(counts) == min(draws, 8)
    assert counts.tolist() == [len(range(k, draws, 8)) for k in range(min(draws, 8))]
    assert counts.sum() == draws == int(batch_sizes(draws).sum())
    for k in range(len(means)):
        np.testing.assert_allclose(means[k], values[k::8].mean(0), rtol=1e-12)


def test_groups_of_single_precision_sums_are_divided_in_double():
    means, _ = groups_of(torch.ones(16, 1), 48)
    assert means.dtype == np.float64
    np.testing.assert_allclose(means, 1 / 3, rtol=1e-15)


# --- colours


def grouped(channels: int, seed: int = 0, draws: int = 20) -> tuple[np.ndarray, np.ndarray]:
    """Groups of draws whose signal and noise are mixed over the colours, each in a way of its own."""
    mixed = normal(2, channels, channels, seed=seed + 100)
    signal = np.einsum("cd,dhw->chw", mixed[0], normal(channels, 12, 10, seed=seed))
    noise = np.einsum("cd,ndhw->nchw", mixed[1], normal(draws, channels, 12, 10, seed=seed + 1))
    sums = np.zeros((16, channels, 12, 10))
    for i in range(draws):
        sums[i % 16] += signal + noise[i]
    return groups_of(torch.from_numpy(sums), draws)


def covariances(means: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Those of the mean and of the noise in it, over all pixels, by loops."""
    mean = sum(c * m for c, m in zip(counts, means, strict=True)) / counts.sum()
    noise = sum(
        c * (m - mean).reshape(len(mean), -1) @ (m - mean).reshape(len(mean), -1).T
        for c, m in zip(counts, means, strict=True)
    ) / ((len(counts) - 1) * counts.sum())
    return mean.reshape(len(mean), -1) @ mean.reshape(len(mean), -1).T, noise


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("draws", [2, 20, 64])
def test_the_new_colours_part_signal_and_noise(channels, draws):
    """there N there' = 1 and there (M - N) there' is diagonal."""
    means, counts = grouped(channels, draws=draws)
    second, noise = covariances(means, counts)
    colours = Colours.of(means, counts)
    turned_noise = colours.there @ noise @ colours.there.T
    turned_signal = colours.there @ (second - noise) @ colours.there.T
    np.testing.assert_allclose(turned_noise, np.eye(channels), rtol=0, atol=1e-9)
    off = turned_signal - np.diag(turned_signal.diagonal())
    np.testing.assert_allclose(off, 0, rtol=0, atol=1e-9 * np.abs(turned_signal).max())
    np.testing.assert_allclose(colours.back @ colours.there, np.eye(channels), rtol=0, atol=1e-9)


def test_maps_come_back_from_the_new_colours():
    means, counts = grouped(3)
    colours = Colours.of(means, counts)
    again = colours.turn_back(colours.turn(means[0]).astype(np.float64))
    np.testing.assert_allclose(again, means[0], rtol=0, atol=1e3 * np.finfo(np.float32).eps)
    np.testing.assert_allclose(colours.turn(means)[2], colours.turn(means[2]), rtol=0, atol=1e-5)


def test_weights_make_the_powers_of_uncorrelated_colours_add_up():
    """sum_c (back m)_c^2 = sum_d weight_d m_d^2 for colours d that do not go together."""
    colours = Colours.of(*grouped(3))
    apart = np.linalg.qr(normal(25, 3))[0].T.reshape(3, 5, 5) * np.array([3.0, 1.0, 0.2])[:, None, None]
    power = (colours.turn_back(apart) ** 2).sum()
    np.testing.assert_allclose(power, (colours.weights * (apart**2).sum((1, 2))).sum(), rtol=1e-12)


def test_without_noise_the_colours_stay():
    colours = Colours.of(np.ones((4, 3, 5, 5)), np.full(4, 2.0))
    assert np.array_equal(colours.there, np.eye(3))
    assert np.array_equal(colours.back, np.eye(3))


@pytest.mark.parametrize("mix", [np.ones((3, 3)), np.diag([1.0, 1.0, 0.0]), np.diag([1.0, 1e-4, 1e4])])
def test_colours_that_go_together_or_are_empty_do_no_harm(mix):
    """A grey picture has one colour, thrice: its noise has no inverse."""
    means, counts = grouped(3)
    means = np.einsum("cd,kdhw->kchw", mix, means)
    colours = Colours.of(means, counts)
    assert np.isfinite(colours.there).all()
    np.testing.assert_allclose(colours.back @ colours.there, np.eye(3), rtol=0, atol=1e-6)
    again = np.einsum("cd,dhw->chw", colours.back, np.einsum("dc,chw->dhw", colours.there, means[0]))
    np.testing.assert_allclose(again, means[0], rtol=0, atol=1e-9 * np.abs(means).max())


# --- what is never shrunk


def test_values_beyond_five_standard_errors_stay_as_measured():
    mean, noise, shrunk = np.zeros((2, 20, 20)), np.full((2, 20, 20), 4.0), np.full((2, 20, 20), 0.5)
    mean[0, 3, 4], mean[1, 9, 9], mean[1, 0, 0] = 10.01, -10.01, 9.99
    values, sure = kept(mean, noise, shrunk, 40)
    assert values[0, 3, 4] == 10.01
    assert values[1, 9, 9] == -10.01
    assert (values == 0.5).sum() == 800 - 2
    assert sure == pytest.approx(2 / 800, rel=1e-12)


def test_the_standard_error_of_a_value_is_at_least_that_of_its_neighbourhood():
    """Few draws agree by chance: a noise of zero in one value among others of one is no certainty."""
    mean, noise = np.zeros((1, 21, 21)), np.ones((1, 21, 21))
    mean[0, 10, 10], noise[0, 10, 10] = 4.8, 0.0  # the mean over 7 x 7 of which one is 0 is 48 / 49
    values, sure = kept(mean, noise, np.zeros_like(mean), 40)
    assert (sure, values.any()) == (0, False)
    mean[0, 10, 10] = 5.0
    values, sure = kept(mean, noise, np.zeros_like(mean), 40)
    assert values[0, 10, 10] == 5.0
    noise[0, 10, 10] = 1.5  # its own noise is the larger one
    assert not kept(mean, noise, np.zeros_like(mean), 40)[0].any()


def test_the_neighbourhood_is_of_all_colours():
    mean, noise = np.full((2, 9, 9), 7.5), np.stack([np.zeros((9, 9)), np.full((9, 9), 4.0)])
    values, sure = kept(mean, noise, np.zeros_like(mean), 40)
    assert (values[0] == 7.5).all()  # beyond 5 sqrt(2): the mean noise of the colours is 2
    assert not values[1].any()
    assert sure == 0
    assert not kept(mean * 7.0 / 7.5, noise, np.zeros_like(mean), 40)[0].any()


@pytest.mark.parametrize(("draws", "needed"), [(2, 636.6), (4, 12.92), (8, 5.408), (10, 5.0), (40, 5.0)])
def test_few_draws_know_little_of_a_values_own_noise(draws, needed):
    """Student's t for a chance of 0.001, and never fewer than five standard errors."""
    mean, noise, shrunk = np.zeros((1, 40, 40)), np.full((1, 40, 40), 1e-6), np.zeros((1, 40, 40))
    noise[0, 20, 20] = 4.0
    around = 5 * np.sqrt(4.0 / 49 + 1e-6)  # less than what its own noise asks for
    for height, there in ((0.999, False), (1.001, True)):
        mean[0, 20, 20] = height * needed * 2.0
        assert mean[0, 20, 20] > around
        assert bool(kept(mean, noise, shrunk, draws)[0].any()) == there


def test_nothing_at_all_is_sure_of_nothing():
    zero = np.zeros((1, 4, 4))
    assert kept(zero, zero, zero, 40)[1] == 0.0


@pytest.mark.doors
@pytest.mark.parametrize("features", [(3,), (4, 5), (1, 3, 4, 5), ()])
def test_what_is_no_image_is_refused(features):
    with pytest.raises(pl.ArgumentError, match=r"Shrunk is for images \(B, C, H, W\).*take Mean\(\) or Factored\(\)"):
        check_image(features, "Shrunk")


def test_an_image_of_any_size_is_none_that_is_refused():
    assert check_image((1, 1, 1), "Shrunk") is None

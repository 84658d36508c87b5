import math

import numpy as np
import pytest
import torch

import pellucid as pl
from pellucid.metrics.similarity import rank_correlation, structural_similarity

NOISE = np.random.default_rng(0).standard_normal((2, 40, 30))


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ([1, 2, 3], [1, 20, 3], 0.5),  # ranks 1 2 3 and 1 3 2: 1 - 6 (1 + 1) / (3 * 8)
        ([1, 2, 3, 4], [4, 3, 2, 1], -1.0),
        ([1, 2, 3, 4], [2, 1, 4, 3], 0.6),  # 1 - 6 * 4 / (4 * 15)
        ([1, 1, 2], [1, 2, 3], 1.5 / math.sqrt(1.5 * 2)),  # ties share rank 1.5: deviations -.5 -.5 1 and -1 0 1
    ],
)
def test_rank_correlation_is_spearmans(a, b, expected):
    assert rank_correlation(np.array(a), np.array(b)) == pytest.approx(expected)


def test_only_the_order_of_the_values_counts():
    assert rank_correlation(NOISE[0], np.exp(NOISE[0])) == pytest.approx(1)


def test_maps_are_compared_with_their_sign():
    assert rank_correlation(NOISE[0], -NOISE[0]) == pytest.approx(-1)
    assert abs(rank_correlation(NOISE[0], np.abs(NOISE[0]))) < 0.2


def test_independent_noise_has_nearly_no_rank_correlation():
    """Its standard deviation is 1 / sqrt(1200 - 1) = 0.03."""
    assert abs(rank_correlation(NOISE[0], NOISE[1])) < 0.1


def test_all_channels_are_compared_at_once():
    """Each channel alone correlates at 1; both together not: the second is shifted up in one map, down in the other."""
    a, b = np.stack([NOISE[0], NOISE[0] + 10]), np.stack([NOISE[0], NOISE[0] - 10])
    assert rank_correlation(a, b) < 0


def test_a_constant_map_has_no_rank_correlation():
    assert math.isnan(rank_correlation(np.ones(4), np.arange(4.0)))
    assert math.isnan(rank_correlation(np.arange(4.0), np.zeros(4)))


def test_a_map_with_nan_has_no_rank_correlation():
    assert math.isnan(rank_correlation(np.array([1.0, np.nan, 3.0]), np.arange(3.0)))


def test_tensors_arrays_and_leaves_of_a_graph_are_compared_alike():
    a, b = torch.from_numpy(NOISE[0]).float().requires_grad_(), NOISE[1].astype(np.float32)
    expected = rank_correlation(NOISE[0].astype(np.float32), b)
    assert rank_correlation(a, b) == expected
    assert structural_similarity(a, b) == structural_similarity(NOISE[0].astype(np.float32), b)


@pytest.mark.doors
@pytest.mark.parametrize("compare", [pl.rank_correlation, pl.structural_similarity])
def test_maps_of_different_shapes_are_refused(compare):
    with pytest.raises(pl.ArgumentError, match=r"two maps of one shape, but got \(40, 30\) and \(30, 40\)"):
        compare(NOISE[0], NOISE[0].T)


def test_a_map_is_perfectly_similar_to_itself_at_any_scale():
    for one in (NOISE[0], np.abs(NOISE[0]), -np.abs(NOISE[0])):
        assert structural_similarity(one, 1e-6 * one) == pytest.approx(1)


def test_black_and_white_are_as_unlike_as_the_constant_allows():
    """Means 0 and 1, no variance: C1 / (0 + 1 + C1), C1 = 0.01^2 of a range of 1."""
    found = structural_similarity(np.zeros((20, 20)), np.ones((20, 20)))
    assert found == pytest.approx(1e-4 / (1 + 1e-4))


def test_signed_maps_have_twice_the_range():
    """Means 1 and -1: (-2 + C1) / (2 + C1), C1 = (0.01 * 2)^2."""
    found = structural_similarity(np.ones((20, 20)), -np.ones((20, 20)))
    assert found == pytest.approx((-2 + 4e-4) / (2 + 4e-4))


def test_ssim_is_that_of_wang_with_a_gaussian_window_of_eleven():
    """Maps of 11 x 11 hold one window, so the mean over windows is its formula (Wang et al. 2004, eq. 13)."""
    a, b = np.random.default_rng(1).random((2, 11, 11))
    bell = np.exp(-(np.arange(-5, 6) ** 2) / (2 * 1.5**2))
    window = np.outer(bell, bell) / bell.sum() ** 2
    x, y = (np.minimum(m / np.percentile(m, 99), 1) for m in (a, b))
    mean_x, mean_y = (window * x).sum(), (window * y).sum()
    var_x, var_y = (window * (x - mean_x) ** 2).sum(), (window * (y - mean_y) ** 2).sum()
    both = (window * (x - mean_x) * (y - mean_y)).sum()
    c1, c2 = 0.01**2, 0.03**2
    expected = (2 * mean_x * mean_y + c1) * (2 * both + c2) / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))
    assert structural_similarity(a, b) == pytest.approx(expected, rel=1e-9)


def test_one_outlier_does_not_set_the_scale():
    """Over the 99th percentile everything is as bright: a pixel of 100 and one of 10000 are drawn alike."""
    a, b = np.abs(NOISE[0]), np.abs(NOISE[1])
    low, high = a.copy(), a.copy()
    low[5, 5], high[5, 5] = 1e2, 1e4
    assert structural_similarity(low, b) == structural_similarity(high, b)


def test_a_sparse_map_is_scaled_to_its_largest_value():
    """One pixel of 1600: the percentile is 0. Unscaled, a millionth would pass for black and for similar."""
    a, b = np.zeros((2, 40, 40))
    a[10, 10], b[30, 30] = 1.0, 1.0
    assert structural_similarity(1e-6 * a, 1e-6 * b) == structural_similarity(a, b) < 0.999
    assert structural_similarity(1e-6 * a, a) == 1


def test_two_maps_of_zeros_are_alike():
    assert structural_similarity(np.zeros((12, 12)), np.zeros((12, 12))) == 1


@pytest.mark.doors
@pytest.mark.parametrize("shape", [(10, 50), (3, 20, 20), (400,)])
def test_ssim_needs_pictures_of_at_least_one_window(shape):
    with pytest.raises(pl.ArgumentError, match=r"maps \(H, W\) of at least 11 x 11. Got"):
        structural_similarity(np.zeros(shape), np.zeros(shape))

import numpy as np
import pytest
from scipy.stats import multivariate_normal

from pellucid.explainers._odd_process import OddProcess, fit_weights

RNG = np.random.default_rng(0)
X = RNG.choice([-1.0, 1.0], (60, 8))
KERNELS = [X @ X.T, X[:, :2] @ X[:, :2].T]


def drawn(weights, noise, seed=0):
    covariance = sum(w * k for w, k in zip(weights, KERNELS, strict=True)) + noise * np.eye(len(X))
    return np.random.default_rng(seed).multivariate_normal(np.zeros(len(X)), covariance), covariance


def test_the_inverse_is_that_of_the_weighted_kernels_and_the_noise():
    halves, _ = drawn([0.5, 2.0], 0.3)
    process = fit_weights(KERNELS, halves)
    covariance = np.linalg.inv(process.inverse)
    left = covariance - sum(w * k for w, k in zip(process.weights, KERNELS, strict=True))
    assert np.allclose(left, left[0, 0] * np.eye(len(X)), atol=1e-6 * covariance.max())
    assert left[0, 0] > 0
    assert np.allclose(process.alpha, process.inverse @ halves)


def test_no_weights_near_it_are_likelier():
    """The optimum of the penalised likelihood, against scipy's density of the same normal."""
    halves, _ = drawn([0.5, 2.0], 0.3)
    process = fit_weights(KERNELS, halves)
    noise = np.linalg.inv(process.inverse)[0, 0] - sum(
        w * k[0, 0] for w, k in zip(process.weights, KERNELS, strict=True)
    )
    power = (halves**2).mean()
    scales = np.array([*(len(X) / np.trace(k) for k in KERNELS), 1.0]) * power
    start = np.log(np.array([0.3, 0.3, 0.4]))

    def likelihood(logs):
        weights = np.exp(logs) * scales
        covariance = sum(w * k for w, k in zip(weights[:-1], KERNELS, strict=True)) + weights[-1] * np.eye(len(X))
        return multivariate_normal(np.zeros(len(X)), covariance).logpdf(halves) - 0.05 * ((logs - start) ** 2).sum()

    found = np.log(np.append(process.weights, noise) / scales)
    for axis in range(3):
        for step in (-0.1, 0.1):
            assert likelihood(found) >= likelihood(found + step * np.eye(3)[axis])


def test_the_weights_follow_the_data():
    first, _ = drawn([5.0, 0.0], 0.1)
    second, _ = drawn([0.0, 5.0], 0.1)
    one, other = fit_weights(KERNELS, first), fit_weights(KERNELS, second)
    assert one.weights[0] > 10 * other.weights[0]


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e8])
def test_the_weights_have_the_unit_of_the_scores(scale):
    halves, _ = drawn([0.5, 2.0], 0.3)
    one, other = fit_weights(KERNELS, halves), fit_weights(KERNELS, halves * scale)
    assert np.allclose(other.weights, one.weights * scale**2, rtol=1e-6)
    assert np.allclose(other.alpha, one.alpha / scale, rtol=1e-6)
    assert other.r2 == pytest.approx(one.r2, abs=1e-9)


def test_r2_is_that_of_predictions_of_each_from_the_others():
    halves, _ = drawn([0.5, 2.0], 0.3)
    process = fit_weights(KERNELS, halves)
    covariance = np.linalg.inv(process.inverse)
    left = []
    for i in range(len(X)):
        others = np.delete(np.arange(len(X)), i)
        solved = np.linalg.solve(covariance[np.ix_(others, others)], halves[others])
        left.append(halves[i] - covariance[i, others] @ solved)
    assert process.r2 == pytest.approx(1 - np.mean(np.square(left)) / np.mean(halves**2), abs=1e-6)


def test_noise_alone_has_no_r2():
    assert fit_weights(KERNELS, np.random.default_rng(1).standard_normal(len(X))).r2 < 0.15


def test_scores_that_never_differ_are_explained_by_nothing():
    process = fit_weights(KERNELS, np.zeros(len(X)))
    assert not process.weights.any()
    assert not process.alpha.any()
    assert process.r2 == 0


def test_the_process_keeps_what_it_was_fitted_to():
    halves, _ = drawn([0.5, 2.0], 0.3)
    assert isinstance(fit_weights(KERNELS, halves), OddProcess)
    assert np.array_equal(fit_weights(KERNELS, halves).halves, halves)

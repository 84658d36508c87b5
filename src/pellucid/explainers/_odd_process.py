"""A Gaussian process on the half-differences of complementary pairs, whose kernels' weights the data choose.

    h ~ N(0, sum_k w_k K_k + w_0 I),   w = argmax log p(h | w)        (Rasmussen & Williams 2006, eq. 5.8 and 5.9)

Each K_k is odd, k(x, -y) = -k(x, y), so that it models the odd part of a game alone; n calls give n / 2 values of h.
What is explained is a linear functional of h, so its posterior mean and variance are exact given the weights.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float

from pellucid.core.queries import Fit

__all__ = ["OddProcess", "fit_weights", "posterior", "predicted", "told"]

_LEAST_R2 = 0.15
"""Of left-out half-differences: under it the process has not found the game, and its posterior variance says little."""

_STEPS = 20
_NOISE = 0.4  # the prior's share of what no kernel explains
_PRIOR = 0.05  # how strongly the logarithms of the weights are held near their start
_KERNELS, _NUGGET = (-12.0, 3.0), (-7.0, 2.0)  # bounds of those logarithms, the half-differences having variance 1


@dataclass(frozen=True, eq=False)
class OddProcess:
    """A fitted process: the weight of each kernel, K^-1 h and K^-1 of the half-differences h that it was fitted to, and
    the variance of their noise.
    """

    weights: Float[np.ndarray, " k"]
    alpha: Float[np.ndarray, " n"]
    inverse: Float[np.ndarray, "n n"]
    halves: Float[np.ndarray, " n"]
    noise: float

    @property
    def r2(self) -> float:
        """How much of the half-differences' power it predicts of each from the others (leave-one-out)."""
        return predicted(self.alpha, np.diag(self.inverse), self.halves)


def posterior(
    weights: Float[np.ndarray, " k"],
    noise: float,
    kernels: Iterable[Float[np.ndarray, "n n"]],
    halves: Float[np.ndarray, " n"],
) -> OddProcess:
    """The process of known weights on more half-differences; no two kernels are held at once."""
    total = np.zeros((len(halves), len(halves)))
    for weight, kernel in zip(weights, kernels, strict=True):
        total += weight * kernel
    inverse, _ = _inverted(total, noise)
    if inverse is None:
        raise ArithmeticError("the covariance of the process has no Cholesky factor")  # its noise is over zero
    return OddProcess(weights, inverse @ halves, inverse, halves, noise)


def predicted(
    alpha: Float[np.ndarray, " n"], diagonal: Float[np.ndarray, " n"], halves: Float[np.ndarray, " n"]
) -> float:
    """The share of the power of h that is predicted of each from the others, by K^-1 h and the diagonal of K^-1."""
    power = float((halves**2).mean())
    left = alpha / diagonal  # Rasmussen & Williams 2006, eq. 5.12
    return 1 - float((left**2).mean()) / power if power else 0.0


def told(fit: Fit, r2: float, instead: str) -> Fit:
    """The fit of a process with this leave-one-out R2; without its error where that cannot be believed."""
    noted = replace(fit, notes={**fit.notes, "r2": r2})
    if r2 >= _LEAST_R2 or fit.variance is None or not fit.variance.any():
        return noted
    said = (
        f"The process that estimates the map predicts {max(r2, 0):.0%} of the power of scores that it has not seen, "
        f"under {_LEAST_R2:.0%}: no error is shown. A larger budget may mend it, or estimator={instead}."
    )
    return replace(noted, variance=None, findings=(said,))


def fit_weights(
    kernels: Sequence[Float[np.ndarray, "n n"]], halves: Float[np.ndarray, " n"], rest: tuple[float, int] = (0.0, 0)
) -> OddProcess:
    """The process of most likelihood among non-negative weights, with a weak prior on their logarithms.

    `rest` is the sum of squares of so many further numbers that are noise alone: kernels of low rank see few of the
    numbers into which the half-differences can be turned.
    """
    from scipy.optimize import minimize

    n = len(halves)
    squares, further = rest
    power = (float((halves**2).sum()) + squares) / (n + further)
    if power == 0:  # nothing was ever different
        return OddProcess(np.zeros(len(kernels)), np.zeros(n), np.eye(n), halves, 1.0)
    y = halves / np.sqrt(power)
    scales = [(n + further) / np.trace(kernel) for kernel in kernels]
    stacked = np.stack([kernel * scale for kernel, scale in zip(kernels, scales, strict=True)])
    flat = stacked.reshape(len(kernels), -1)
    start = np.log(np.append(np.full(len(kernels), (1 - _NOISE) / len(kernels)), _NOISE))

    def objective(logs: np.ndarray) -> tuple[float, np.ndarray]:
        inverse, half_logdet = _inverted((np.exp(logs[:-1]) @ flat).reshape(n, n), float(np.exp(logs[-1])))
        if inverse is None:
            return 1e10, np.zeros_like(logs)
        alpha = inverse @ y
        slope = inverse - np.outer(alpha, alpha)
        gradient = 0.5 * np.exp(logs) * np.append(flat @ slope.ravel(), np.trace(slope))
        value = 0.5 * float(y @ alpha) + half_logdet + _PRIOR * float(((logs - start) ** 2).sum())
        noise = float(np.exp(logs[-1]))
        value += 0.5 * (squares / power / noise + further * float(logs[-1]))
        gradient[-1] += 0.5 * (further - squares / power / noise)
        return value, gradient + 2 * _PRIOR * (logs - start)

    bounds = [_KERNELS] * len(kernels) + [_NUGGET]
    found = minimize(objective, start, jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": _STEPS}).x
    weights = np.exp(found[:-1])
    inverse, _ = _inverted((weights @ flat).reshape(n, n), float(np.exp(found[-1])))
    if inverse is None:
        raise ArithmeticError("the covariance of the fitted process has no Cholesky factor")  # bounds keep it away
    inverse = inverse / power
    noise = float(np.exp(found[-1])) * power
    return OddProcess(weights * power * np.array(scales), inverse @ halves, inverse, halves, noise)


def _inverted(kernel: Float[np.ndarray, "n n"], noise: float) -> tuple[np.ndarray | None, float]:
    """The inverse of kernel + noise I and half the logarithm of its determinant; None if it has no Cholesky factor."""
    from scipy.linalg import lapack

    kernel = kernel.copy()
    kernel[np.diag_indices_from(kernel)] += noise
    factor, failed = lapack.dpotrf(kernel, lower=1, clean=1)
    if failed:
        return None, 0.0
    lower = np.tril(lapack.dpotri(factor, lower=1)[0])
    return lower + np.tril(lower, -1).T, float(np.log(np.diag(factor)).sum())

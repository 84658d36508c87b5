"""Shrunk SmoothGrad: the sampled map in a wavelet basis, each band scaled by the share of its power that is signal.

    M_b = S_b / (S_b + V_b) * mean_b        (Wiener's gain, per wavelet band b and decorrelated colour)

S_b is the band's signal power and V_b that of the noise in its mean, both estimated from independent groups of draws.
Values beyond five standard errors are never shrunk. A biased estimate of the same quantity; its error is
sum_b (1 - w)^2 S_b + w^2 V_b with w the gain, and there is none per element.
"""

from dataclasses import dataclass, field, replace

import numpy as np
import torch

from pellucid.core.card import Cost
from pellucid.core.estimator import Draw, Estimator, Finished, Mean
from pellucid.core.moments import Moments
from pellucid.core.stopping import Until
from pellucid.errors import ArgumentError
from pellucid.modalities.image.wavelet import Colours, check_image, forward, groups_of, inverse, kept, within

__all__ = ["Shrunk"]


@dataclass(frozen=True)
class Shrunk(Estimator):
    """The map of `base` (Mean, Antithetic or Factored) with each wavelet band shrunk by its noise. For images.

    Raises:
        ArgumentError: a base that is no such estimator; inputs that are not (B, C, H, W).

    Example:
        >>> import torch, pellucid as pl
        >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 2, 3), torch.nn.Tanh(), torch.nn.AdaptiveAvgPool2d(1))
        >>> model = pl.TorchModel(torch.nn.Sequential(net, torch.nn.Flatten()))
        >>> x = torch.rand(1, 3, 32, 32)
        >>> plain, better = (
        ...     pl.SmoothGrad(n_samples=16, estimator=e)(model, x, 0) for e in (pl.Mean(), pl.Shrunk())
        ... )
        >>> bool(better.estimated_error < plain.estimated_error)
        True
    """

    base: Estimator = field(default_factory=Mean)

    def __post_init__(self) -> None:
        fits = isinstance(self.base, Estimator) and self.base.order == 2 and not isinstance(self.base, Shrunk)
        if not fits or self.base.how(48).stacked:
            raise ArgumentError(f"`base` is Mean(), Antithetic() or Factored(), to be shrunk. Got {self.base!r}.")

    @property
    def least(self) -> int:  # type: ignore[override]  # of the base
        """The fewest samples."""
        return self.base.least

    def check(self, features: tuple[int, ...]) -> None:
        check_image(features, "Shrunk")

    def how(self, n_samples: int | Until) -> Draw:
        return self.base.how(n_samples)

    def settled(self, size: int) -> "Shrunk":
        return replace(self, base=self.base.settled(size))

    def cost(self, base: Cost, n_samples: int | Until) -> Cost:
        return self.base.cost(base, n_samples)

    def finish(self, moments: Moments) -> Finished:
        inner = self.base.finish(moments)
        if moments.count < 2:  # nothing tells signal from noise
            return inner
        rows = [_Row.of(moments, row) for row in range(len(moments.sums))]
        values = torch.from_numpy(np.stack([row.values for row in rows])).to(inner.values)
        bias = inner.bias * torch.tensor([row.passed for row in rows]).to(inner.bias)

        def squared(times: float) -> torch.Tensor:
            noise = torch.tensor([row.squared(times) for row in rows], dtype=torch.float64)
            return noise.to(bias.device) + bias

        return replace(inner, values=values, standard_error=None, squared=squared, bias=bias)

    @property
    def words(self) -> str:
        return ", ".join(filter(None, [self.base.words, "wavelet-shrunk"]))


@dataclass(frozen=True, eq=False)
class _Row:
    """One input's shrunk map, and what its error rests on: per band and colour the powers of signal and noise.

    `total` is the mean noise per element, to which the bands' add up but for the edges, which are in several
    coefficients; `sure` is the part of it in values that were not shrunk.
    """

    values: np.ndarray
    signal: np.ndarray
    noise: np.ndarray
    total: float
    sure: float

    @classmethod
    def of(cls, moments: Moments, row: int) -> "_Row":
        means, counts = groups_of(moments.sums[row], moments.count)
        mean, noise = moments.mean[row].cpu().numpy(), moments.noise[row].cpu().numpy()
        if not noise.any() or not np.isfinite(noise).all():  # nothing to shrink, or no way to
            return cls(mean, np.zeros(1), np.zeros(1), float(noise.mean()), 0.0)
        colours = Colours.of(means, counts)
        weights, n = colours.weights, counts.sum()
        signal, spread, shrunk = [], [], []
        bands = forward(colours.turn(means))
        for band, inner in zip(bands, within(bands, mean.shape), strict=True):
            m = np.tensordot(counts / n, inner, 1)
            apart = (inner - m) ** 2
            v = np.tensordot(counts, apart, 1).sum((-2, -1)) / ((len(counts) - 1) * n)
            s = np.maximum((m * m).sum((-2, -1)) - v, 0.0)
            gain = s / np.maximum(s + v, np.finfo(np.float64).tiny)
            shrunk.append(np.tensordot(counts / n, band, 1) * gain[:, None, None])
            signal.append(weights * s)
            spread.append(weights * v)
        map_ = colours.turn_back(inverse(shrunk, mean.shape))
        values, sure = kept(mean, noise, map_, moments.count)
        return cls(values, np.array(signal), np.array(spread), float(noise.mean()), sure)

    def squared(self, times: float) -> float:
        """The mean squared error per element, without bias, with so many times the draws."""
        noise = self.noise / times
        whole = np.maximum(self.signal + noise, np.finfo(np.float64).tiny)
        left = float((self.signal * noise / whole).sum() / max(noise.sum(), np.finfo(np.float64).tiny))
        return self.total / times * (left + self.sure * (1 - left))

    @property
    def passed(self) -> float:
        """The share of a bias like the signal that the shrinking lets pass, in power."""
        whole = np.maximum(self.signal + self.noise, np.finfo(np.float64).tiny)
        total = self.signal.sum()
        return float(((self.signal / whole) ** 2 * self.signal).sum() / total) if total > 0 else 1.0

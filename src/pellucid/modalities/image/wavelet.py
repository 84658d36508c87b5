"""An image's independent batch maps in a wavelet basis: signal and noise apart, for each band and colour.

sym4, up to four levels, edges continued by reflection. Colours are first turned so that neither signal nor noise of
one goes with that of another (the generalised eigenvectors of both covariances).
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from torch import Tensor

from pellucid.core.estimate import batch_sizes

__all__ = ["Bands", "Colours", "check_image", "forward", "groups_of", "inverse", "kept", "within"]

_WAVELET, _LEVELS, _MODE = "sym4", 4, "symmetric"

_SURE = 5.0  # standard errors beyond which a value is never shrunk
_CHANCE = 0.001  # that a value without signal is so many of its own estimated standard errors from zero
_NEAR = 7  # pixels over which the noise is averaged, since few draws show it badly in one

Bands = list[np.ndarray]
"""The coefficients of maps (..., h, w), from the coarsest band to the finest."""


def check_image(features: tuple[int, ...], name: str) -> None:
    """Raises ArgumentError unless the features are those of an image, (C, H, W)."""
    from pellucid.errors import ArgumentError

    if len(features) != 3:
        raise ArgumentError(f"{name} is for images (B, C, H, W). Got inputs of {features}: take Mean() or Factored().")


def forward(maps: Float[np.ndarray, "*maps h w"]) -> Bands:
    """The bands of each map."""
    import pywt

    levels = min(_LEVELS, pywt.dwtn_max_level(maps.shape[-2:], _WAVELET))
    first, *details = pywt.wavedec2(maps, _WAVELET, level=levels, mode=_MODE)
    return [first, *(band for triple in details for band in triple)]


def within(bands: Bands, shape: tuple[int, ...]) -> Bands:
    """The coefficients of the picture itself, without those of its reflections beyond the edges, which count twice."""
    levels = (len(bands) - 1) // 3
    found = []
    for i, band in enumerate(bands):
        level = levels - max(i - 1, 0) // 3
        high, wide = (-(-side // 2**level) for side in shape[-2:])
        top, left = (band.shape[-2] - high) // 2, (band.shape[-1] - wide) // 2
        found.append(band[..., top : top + high, left : left + wide])
    return found


def inverse(bands: Bands, shape: tuple[int, ...]) -> Float[np.ndarray, "*maps h w"]:
    """The maps of these bands, (..., h, w) = `shape`."""
    import pywt

    triples = [tuple(bands[i : i + 3]) for i in range(1, len(bands), 3)]
    whole = pywt.waverec2([bands[0], *triples], _WAVELET, mode=_MODE)
    return np.asarray(whole[..., : shape[-2], : shape[-1]])


def groups_of(sums: Tensor, draws: int) -> tuple[np.ndarray, np.ndarray]:
    """The means of one input's independent groups of draws (K, *features) and the number of draws in each."""
    sizes = batch_sizes(draws).numpy()
    half = len(sizes) // 2
    merged = (sums[:half] + sums[half:]).cpu().numpy().astype(np.float64)
    counts = sizes[:half] + sizes[half:]
    held = counts > 0
    return merged[held] / counts[held].reshape(-1, *(1,) * (merged.ndim - 1)), counts[held].astype(np.float64)


@dataclass(frozen=True, eq=False)
class Colours:
    """A turn of the colours: rows of `there` are the new ones, `back` undoes it; `weights` make powers add up."""

    there: np.ndarray
    back: np.ndarray

    @property
    def weights(self) -> np.ndarray:
        """What a unit of power in each new colour is in the old ones."""
        return np.asarray((self.back**2).sum(0))

    @classmethod
    def of(cls, means: Float[np.ndarray, "k c h w"], counts: Float[np.ndarray, " k"]) -> "Colours":
        """The colours that diagonalise signal and noise together, from independent groups."""
        flat = means.reshape(*means.shape[:2], -1)
        n, k = counts.sum(), len(counts)
        mean = np.tensordot(counts / n, flat, 1)
        apart = (flat - mean) * np.sqrt(counts)[:, None, None]
        noise = np.einsum("kcp,kdp->cd", apart, apart) / ((k - 1) * n)
        values, vectors = np.linalg.eigh(noise)
        if values.max() <= 0:
            return cls(np.eye(len(noise)), np.eye(len(noise)))
        white = (vectors / np.sqrt(np.maximum(values, 1e-3 * values.max()))) @ vectors.T
        turned = np.linalg.eigh(white @ (mean @ mean.T - noise) @ white)[1].T @ white
        return cls(turned, np.linalg.inv(turned))

    def turn(self, maps: Float[np.ndarray, "*k c h w"]) -> Float[np.ndarray, "*k c h w"]:
        """The maps in the new colours, in single precision, which a map's noise never reaches."""
        return np.asarray(np.einsum("dc,...chw->...dhw", self.there, maps), np.float32)

    def turn_back(self, maps: Float[np.ndarray, "c h w"]) -> Float[np.ndarray, "c h w"]:
        """The maps in the colours of the input."""
        return np.asarray(np.einsum("cd,dhw->chw", self.back, maps))


def kept(
    mean: Float[np.ndarray, "c h w"],
    noise: Float[np.ndarray, "c h w"],
    shrunk: Float[np.ndarray, "c h w"],
    draws: int,
) -> tuple[np.ndarray, float]:
    """The shrunk map with values beyond five standard errors as measured, and the share of the noise that is in them.

    A few draws may agree by chance. So the standard error of a value is at least that of its neighbourhood, and its own
    counts with as many degrees of freedom as it has: of four draws 12.9 of them are needed, of ten and more five.
    """
    from scipy.ndimage import uniform_filter
    from scipy.special import stdtrit

    around = uniform_filter(noise.mean(0), _NEAR, mode="reflect")
    own = max(_SURE, float(stdtrit(max(draws - 1, 1), 1 - _CHANCE / 2)))
    sure = (mean**2 > own**2 * noise) & (mean**2 > _SURE**2 * around)
    return np.where(sure, mean, shrunk), float(noise[sure].sum() / max(noise.sum(), np.finfo(np.float64).tiny))

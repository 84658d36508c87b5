"""How alike two maps are."""

import numpy as np
from torch import Tensor

from pellucid.errors import ArgumentError

__all__ = ["rank_correlation", "structural_similarity"]


def rank_correlation(a: Tensor | np.ndarray, b: Tensor | np.ndarray) -> float:
    """Spearman's rank correlation of two maps' values, -1 .. 1; NaN where a map is constant.

    Raises:
        ArgumentError: the maps have different shapes.

    Example:
        >>> import torch, pellucid as pl
        >>> round(pl.rank_correlation(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([1.0, 20.0, 3.0])), 6)
        0.5
    """
    from scipy.stats import spearmanr

    first, second = _pair(a, b)
    if np.ptp(first) == 0 or np.ptp(second) == 0:
        return float("nan")
    return float(spearmanr(first.ravel(), second.ravel()).statistic)


def structural_similarity(a: Tensor | np.ndarray, b: Tensor | np.ndarray) -> float:
    """SSIM of two maps (H, W), each first divided by its 99th percentile of |values| and clipped there; 1 if equal.

    Wang et al. 2004 with an 11-pixel Gaussian window of 1.5 pixels, as in their paper.

    Raises:
        ArgumentError: the maps have different shapes, or are not (H, W) of at least 11 pixels a side.

    Example:
        >>> import torch, pellucid as pl
        >>> ramp = torch.arange(256.0).reshape(16, 16)
        >>> pl.structural_similarity(ramp, 2 * ramp)
        1.0
    """
    from skimage.metrics import structural_similarity as ssim

    first, second = _pair(a, b)
    if first.ndim != 2 or min(first.shape) < 11:
        raise ArgumentError(f"SSIM compares maps (H, W) of at least 11 x 11. Got {first.shape}.")
    first, second = _scaled(first), _scaled(second)
    span = 2.0 if min(first.min(), second.min()) < 0 else 1.0
    return float(ssim(first, second, data_range=span, gaussian_weights=True, sigma=1.5, use_sample_covariance=False))


def _pair(a: Tensor | np.ndarray, b: Tensor | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    first, second = (np.asarray(m.detach().cpu() if isinstance(m, Tensor) else m, dtype=np.float64) for m in (a, b))
    if first.shape != second.shape:
        raise ArgumentError(f"Expected two maps of one shape, but got {first.shape} and {second.shape}.")
    return first, second


def _scaled(values: np.ndarray) -> np.ndarray:
    limit = np.percentile(np.abs(values), 99) or np.abs(values).max()  # as drawn: a sparse map up to its largest value
    return np.clip(values / limit, -1, 1) if limit > 0 else values

"""Whether sampling may run in bfloat16: decided from eight samples computed in both precisions. Used by model.py alone.

    r = mean (b_i - f_i)^2 / mean s^2        systematic = <mean_A (b - f), mean_B (b - f)> / <mean_A f, mean_B f>

f_i and b_i are the maps of sample i in float32 and bfloat16, s^2 the unbiased variance of the eight f_i, A and B the
first and the last four samples, <., .> the mean of products over the elements. Errors that differ from sample to sample
add to the variance, so that 1 + r times the samples are needed: worth it if bfloat16 is faster by more. Errors that all
samples share do not fall with more of them: their power, unbiased since A and B are independent, must be small.
Where the variance itself is estimated, r is a bias of it, and must be as small.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pellucid.core.checks import check_choice
from pellucid.errors import ModelError

__all__ = ["HALF", "PrecisionTest", "compare", "has_bfloat16"]

HALF = 4
"""Samples in each of the two halves."""

_SYSTEMATIC = 0.01  # of the signal's power


@dataclass(frozen=True)
class PrecisionTest:
    """The precision that was chosen, and why; None is a number that was infinite or could not be known.

    `failed` is what the network raised in bfloat16.
    """

    precision: str
    r: float | None
    systematic: float | None
    speed_up: float | None
    failed: str | None = None

    @property
    def bfloat16(self) -> bool:
        """Whether bfloat16 was chosen."""
        return self.precision == "bfloat16"

    def data(self) -> dict[str, Any]:
        """What a recipe says of the test."""
        known = {"r": self.r, "systematic": self.systematic, "speed_up": self.speed_up}
        return known if self.failed is None else known | {"failed": self.failed}

    @classmethod
    def of(cls, run: Mapping[str, Any]) -> "PrecisionTest | None":
        """The test that a recipe's run tells of, or None."""
        if "precision_test" not in run:
            return None
        check_choice("precision", run["precision"], ("float32", "bfloat16"))
        return cls(run["precision"], **run["precision_test"])


def compare(
    single: Sequence[Callable[[], Tensor]],
    half: Sequence[Callable[[], Tensor]],
    clock: Callable[[], float],
    *,
    spread: bool = False,
) -> PrecisionTest:
    """The two halves of the samples (4, *features), computed and timed in either precision.

    `spread` says that the variance of the samples is what is estimated. In the order single A, half A, half B,
    single B, of which the faster counts: whatever runs first also warms up.
    """
    single_a, slow_a = _timed(single[0], clock)
    try:
        half_a, fast_a = _timed(half[0], clock)
        half_b, fast_b = _timed(half[1], clock)
    except ModelError as error:  # in float32 it ran
        return PrecisionTest("float32", None, None, None, failed=str(error))
    single_b, slow_b = _timed(single[1], clock)
    speed_up = min(slow_a, slow_b) / max(min(fast_a, fast_b), 1e-9)
    r, systematic = _errors(torch.stack([single_a, single_b]).double(), torch.stack([half_a, half_b]).double())
    # Below zero it is noise of the estimate: a power is not.
    better = speed_up > 1 + r and systematic < _SYSTEMATIC and (r < _SYSTEMATIC or not spread)
    return PrecisionTest("bfloat16" if better else "float32", _finite(r), _finite(systematic), _finite(speed_up))


def _timed(work: Callable[[], Tensor], clock: Callable[[], float]) -> tuple[Tensor, float]:
    start = clock()
    maps = work()
    return maps, clock() - start


def _errors(single: Tensor, half: Tensor) -> tuple[float, float]:
    """R and the systematic part, of maps (2, 4, *features)."""
    errors = half - single
    r = _share(float(errors.square().mean()), float(single.flatten(0, 1).var(0).mean()))
    common = errors.mean(1)
    means = single.mean(1)
    return r, _share(float((common[0] * common[1]).mean()), float((means[0] * means[1]).mean()))


def _share(part: float, whole: float) -> float:
    """Part / whole; infinite where there is no whole to compare with, but 0 of nothing is 0."""
    return part / whole if whole > 0 else 0.0 if part == 0 else math.inf


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def has_bfloat16(device: torch.device) -> bool:
    """Whether bfloat16 is more than emulated there."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    onednn = torch.backends.mkldnn.is_available()
    return device.type == "cpu" and onednn and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())  # noqa: SLF001

"""Sampled quantities: one pass, a mean and a standard error per element, the same for any grouping of the samples.

Samples of one input are always added one by one in the order of their index, in float64, so that neither the
micro-batch nor the company of other inputs can change a sum.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from pellucid.core.recipe import Value

__all__ = ["BATCHES", "Estimate", "Estimator", "Mean", "Samples", "Variance"]

BATCHES = 16
"""Sample i belongs to batch i mod 16; the batch means are kept, to test a map against noise by flipping their signs."""


@dataclass(frozen=True, eq=False)
class Estimate:
    """An estimated map (B, *features) and what is known of its error.

    `standard_error` is None where nothing was sampled, or where it cannot be known (a single sample). `samples` counts
    the draws of each input, 0 for a closed form; `stopped` says why there were no more. `batch_means` is
    (B, 16, *features). `state` holds the accumulated moments, so that samples can be added later; `notes` are figures
    of each input for the recipe.
    """

    values: Tensor
    standard_error: Tensor | None = None
    samples: tuple[int, ...] = ()
    stopped: str = "nothing is sampled"
    batch_means: Tensor | None = None
    state: Mapping[str, Tensor] = field(default_factory=dict)
    notes: Mapping[str, tuple[float, ...]] = field(default_factory=dict)

    @classmethod
    def exact(cls, values: Tensor) -> "Estimate":
        """A map that is computed, not sampled."""
        return cls(values, samples=(0,) * len(values))

    def to(self, device: torch.device) -> "Estimate":
        """The same estimate on another device."""
        return replace(
            self,
            values=self.values.to(device),
            standard_error=None if self.standard_error is None else self.standard_error.to(device),
            batch_means=None if self.batch_means is None else self.batch_means.to(device),
            state={name: part.to(device) for name, part in self.state.items()},
        )


@dataclass(frozen=True, eq=False)
class Samples:
    """A stream of samples: sample i of input b can be computed in any order and beside any other.

    `compute(inputs, indices)` gives (inputs, samples, *features); `at_once` is how many samples fit one call.
    """

    inputs: int
    count: int
    at_once: int
    compute: Callable[[slice, range], Tensor]
    report: Callable[[int, int], None]

    def groups(self) -> Iterator[tuple[slice, Iterator[Tensor]]]:
        """Groups of inputs, each with its samples (inputs, *features) in the order of their index."""
        together = min(self.inputs, self.at_once)
        for start in range(0, self.inputs, together):
            chosen = slice(start, min(start + together, self.inputs))
            yield chosen, self._in_order(chosen)

    def _in_order(self, chosen: slice) -> Iterator[Tensor]:
        width = chosen.stop - chosen.start
        most = max(self.at_once // width, 1)
        blocks = -(-self.count // most)  # as few calls as fit, of nearly equal size
        size = -(-self.count // max(blocks, 1))
        for start in range(0, self.count, max(size, 1)):
            indices = range(start, min(start + size, self.count))
            block = self.compute(chosen, indices)
            yield from block.unbind(1)
            self.report(chosen.start * self.count + width * indices.stop, self.inputs * self.count)


class _Moments:
    """Central moments of a stream of tensors in float64 (Welford 1962; to the fourth order Pebay 2008, eq. 2.1)."""

    def __init__(self, like: Tensor, order: int) -> None:
        self.count = 0
        self.central = [torch.zeros(like.shape, dtype=torch.float64, device=like.device) for _ in range(order)]
        batches = (len(like), BATCHES, *like.shape[1:])
        self.batches = torch.zeros(batches, dtype=torch.float32, device=like.device)

    def add(self, sample: Tensor) -> None:
        before, self.count = self.count, self.count + 1
        n = self.count
        mean, m2, *higher = self.central
        delta = sample.double() - mean
        step = delta / n
        term = delta * step * before
        if higher:
            m3, m4 = higher
            m4 += term * step**2 * (n * n - 3 * n + 3) + 6 * step**2 * m2 - 4 * step * m3
            m3 += term * step * (n - 2) - 3 * step * m2
        mean += step
        m2 += term
        self.batches[:, before % BATCHES] += sample.float()

    def batch_means(self) -> Tensor:
        sizes = torch.tensor([len(range(b, self.count, BATCHES)) for b in range(BATCHES)], device=self.batches.device)
        return self.batches / sizes.clamp(min=1).view(1, BATCHES, *(1,) * (self.batches.ndim - 2))


class Estimator(ABC, Value):
    """How a sampled quantity is made of its samples. Never which quantity: that is the explainer's."""

    @abstractmethod
    def estimate(self, samples: Samples) -> Estimate:
        """The estimate of each input."""


@dataclass(frozen=True)
class Mean(Estimator):
    """The plain mean, unbiased; standard error s / sqrt(n) per element, s^2 the unbiased variance of the samples."""

    def estimate(self, samples: Samples) -> Estimate:
        def finish(moments: _Moments) -> tuple[Tensor, Tensor]:
            mean, m2 = moments.central
            return mean, (m2 / max(moments.count - 1, 1) / moments.count).sqrt()

        return _accumulate(samples, 2, finish)


@dataclass(frozen=True)
class Variance(Estimator):
    """The unbiased variance s^2 of the samples; standard error sqrt((m4 - (n-3)/(n-1) s^4) / n) per element."""

    def estimate(self, samples: Samples) -> Estimate:
        def finish(moments: _Moments) -> tuple[Tensor, Tensor]:
            n = moments.count
            _, m2, _, m4 = moments.central
            variance = m2 / max(n - 1, 1)
            of_variance = (m4 / n - (n - 3) / max(n - 1, 1) * variance**2) / n
            return variance, of_variance.clamp(min=0).sqrt()  # never below zero but by rounding

        return _accumulate(samples, 4, finish)


def _accumulate(samples: Samples, order: int, finish: Callable[[_Moments], tuple[Tensor, Tensor]]) -> Estimate:
    values: list[Tensor] = []
    errors: list[Tensor] = []
    batches: list[Tensor] = []
    states: list[list[Tensor]] = []
    for _, stream in samples.groups():
        first = next(stream)
        moments = _Moments(first, order)
        moments.add(first)
        for sample in stream:
            moments.add(sample)
        value, error = finish(moments)
        values.append(value.to(first.dtype))
        errors.append(error.to(first.dtype))
        batches.append(moments.batch_means())
        states.append(moments.central)
    names = ("mean", "m2", "m3", "m4")[:order]
    return Estimate(
        values=torch.cat(values),
        standard_error=torch.cat(errors) if samples.count > 1 else None,
        samples=(samples.count,) * samples.inputs,
        stopped=f"the {samples.count} samples asked for were taken",
        batch_means=torch.cat(batches) if order == 2 else None,  # a variance is not the mean of its batches
        state={name: torch.cat(parts) for name, parts in zip(names, zip(*states, strict=True), strict=True)},
    )

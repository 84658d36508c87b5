"""When to stop sampling: at a count, or once the map is as certain as was asked for."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from pellucid.core.checks import check_count
from pellucid.core.recipe import Value
from pellucid.errors import ArgumentError

__all__ = ["Until", "check_samples", "counts", "lengthened", "most", "verdict"]

_FIRST, _FACTOR = 16, 1.5


@dataclass(frozen=True, kw_only=True)
class Until(Value):
    """Sample each input until the relative error of its map is at most `error`, or `at_most` samples are taken.

    The error is the root of the estimated squared error over the signal power: 0.5 leaves a quarter of the map's power
    to noise. It is looked at after 16, 24, 36 ... samples (times 1.5) only, so that chance is asked seldom whether to
    stop. A map whose signal power is under two of its own standard errors has "no signal yet" and goes on. None stops
    before `at_least` samples, where it is looked at too; `further` samples are taken after the stop, whatever it was
    for.

    Raises:
        ArgumentError: an error that is no positive number, a count out of range.

    Example:
        >>> import torch, pellucid as pl
        >>> a = pl.SmoothGrad(n_samples=pl.Until(error=0.1, at_most=500))(
        ...     pl.TorchModel(torch.nn.Linear(3, 2)), torch.rand(1, 3)
        ... )
        >>> a.samples_used, a.stopped  # the gradient of a linear network is the same everywhere
        (16, 'error 0 after 16 samples, at most 0.1 was asked for')
    """

    error: float
    at_most: int
    at_least: int = 0
    further: int = 0

    def __post_init__(self) -> None:
        number = isinstance(self.error, int | float) and not isinstance(self.error, bool)
        if not number or not 0 < self.error < math.inf:
            raise ArgumentError(f"`error` is the relative error to reach, such as 0.5. Got {self.error!r}.")
        check_count("at_most", self.at_most, least=2)
        check_count("at_least", self.at_least, least=0)
        check_count("further", self.further, least=0)


def check_samples(n_samples: object, least: int = 1) -> None:
    """Raises ArgumentError unless it is a count of at least `least`, or an Until."""
    if isinstance(n_samples, Until):
        return
    if isinstance(n_samples, bool) or not isinstance(n_samples, int) or n_samples < least:
        raise ArgumentError(
            f"`n_samples` is a whole number, {least} or more, or pl.Until(error=0.5, at_most=2000). Got {n_samples!r}."
        )


def most(n_samples: int | Until) -> int:
    """The samples that can be taken of one input."""
    return n_samples.at_most + n_samples.further if isinstance(n_samples, Until) else n_samples


def counts(n_samples: int | Until, size: int, taken: int = 0) -> list[int]:
    """The numbers of draws of `size` samples after which to look, the last one being the end.

    A count of samples becomes the next whole number of draws, `at_most` the one before. Of a run that has `taken` draws
    those that are left.
    """
    if not isinstance(n_samples, Until):
        return [max(-(-n_samples // size), taken)]
    least = -(-n_samples.at_least // size)
    end = max(n_samples.at_most // size, 1, least)
    steps = [int(_FIRST * _FACTOR**k) for k in range(2 + int(math.log(max(end * size, _FIRST) / _FIRST, _FACTOR)))]
    whole = {max(-(-step // size), 2) for step in steps}
    looks = sorted({n for n in whole | {least} if max(least, 1) <= n < end} | {end})
    return [n for n in looks if n >= taken] or [taken]


def verdict(error: float, goal: float, taken: str, *, last: bool, more: Callable[[], float | None]) -> str:
    """Why an input stops after what was `taken`, in words; or nothing, if it goes on. `more` says how many more would
    reach the goal, None if no number does.
    """
    if error <= goal:
        return f"error {error:.2g} after {taken}, at most {goal:g} was asked for"
    if not last:
        return ""
    if math.isinf(error):
        return f"no signal yet after {taken}, the most that were allowed"
    needed = more()
    then = "no number of samples is enough" if needed is None else f"about {needed:.0f} more would be needed"
    return f"error {error:.2g} after {taken}, the most that were allowed; for {goal:g} {then}"


def lengthened(n_samples: int | Until, taken: Sequence[int], more: "int | Until") -> "int | Until":
    """What a run that took `taken` samples of each input and then `more` would have been asked for.

    Raises:
        ArgumentError: the inputs took different numbers, at which one run would not have looked.
    """
    if isinstance(more, int):
        if isinstance(n_samples, Until):
            return replace(n_samples, further=n_samples.further + more)
        return taken[0] + more
    if isinstance(n_samples, Until) and not n_samples.further and more.error <= n_samples.error:
        # It stopped where the longer run looks, too, and would not have stopped before.
        return replace(more, at_least=max(more.at_least, n_samples.at_least))
    if len(set(taken)) > 1:
        raise ArgumentError(
            f"The inputs took {', '.join(map(str, sorted(set(taken))))} samples, and no one run stops each of them "
            "where this would. Extend them one by one, a[i].extend(...), or ask for a smaller error at once."
        )
    return replace(more, at_least=max(more.at_least, taken[0]))

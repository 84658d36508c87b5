"""Which micro-batch is fastest, measured on request. Nothing that decides a result is timed unless `tune` is called."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

__all__ = ["Timing", "Tuning", "sizes_up_to", "tuned"]

_SECONDS = 10.0
_FIRST_ROUND = 0.4  # of the time may go to finding how far micro-batches can grow
_ROUNDS = 7


@dataclass(frozen=True)
class Timing:
    """The median seconds for each sample with micro-batches of so many rows, of `rounds` measurements."""

    micro_batch: int
    precision: str
    seconds: float
    rounds: int


@dataclass(frozen=True)
class Tuning:
    """What `model.tune` measured, and the micro-batch that it set: the fastest in the precision in use."""

    timings: tuple[Timing, ...]
    precision: str
    micro_batch: int

    def __str__(self) -> str:
        columns = tuple(dict.fromkeys(timing.precision for timing in self.timings))
        cells = {(t.micro_batch, t.precision): f"{t.seconds * 1e3:.3g}" for t in self.timings}
        lines = ["micro-batch" + "".join(f"{name:>10}" for name in columns) + "   (ms for each sample)"]
        for rows in sorted({timing.micro_batch for timing in self.timings}):
            line = f"{rows:>11}" + "".join(f"{cells.get((rows, name), '-'):>10}" for name in columns)
            lines.append(line + f"   <- set, {self.precision}" * (rows == self.micro_batch))
        return "\n".join(lines)

    __repr__ = __str__


def sizes_up_to(most: int) -> list[int]:
    """2, 4, 8 ... rows."""
    return [2**k for k in range(1, most.bit_length()) if 2**k <= most]


def tuned(
    work: Callable[[int, str], object],
    *,
    sizes: Sequence[int],
    precisions: Sequence[str],
    fits: Callable[[int, str], bool],
    in_use: str,
    clock: Callable[[], float],
) -> Tuning:
    """Time `work(rows, precision)` for growing micro-batches while they fit, in rounds that take them in turn.

    The first size is taken to fit in the precision in use. The first round, in which everything warms up, shows how far
    sizes can grow in the time, and is not counted where there is another.
    """
    begun = clock()
    seen: dict[tuple[int, str], list[float]] = {}

    def measure(rows: int, precision: str) -> float:
        start = clock()
        work(rows, precision)
        seconds = clock() - start
        seen.setdefault((rows, precision), []).append(seconds / rows)
        return seconds

    for rows in sizes:
        going = [p for p in precisions if (rows == sizes[0] and p == in_use) or fits(rows, p)]
        if in_use not in going:
            break
        took = sum(measure(rows, precision) for precision in going)
        if clock() - begun + 2 * took > _FIRST_ROUND * _SECONDS:
            break
    for _ in range(_ROUNDS):
        for (rows, precision), each in list(seen.items()):
            if clock() - begun + each[-1] * rows <= _SECONDS:
                measure(rows, precision)
    timings = tuple(
        Timing(rows, precision, median(each[1:] or each), len(each[1:] or each))
        for (rows, precision), each in seen.items()
    )
    best = min((timing for timing in timings if timing.precision == in_use), key=lambda timing: timing.seconds)
    return Tuning(timings, in_use, best.micro_batch)

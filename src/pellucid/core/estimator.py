"""How a sampled quantity is approximated from its samples, and the engine that takes them.

An estimator says how a draw is made of samples and what becomes of the accumulated draws. Never which quantity: that is
the explainer's.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pellucid.core.card import Cost
from pellucid.core.estimate import Estimate
from pellucid.core.moments import Moments, per_input, power_error
from pellucid.core.recipe import Value
from pellucid.core.stopping import Until, counts, most, verdict

__all__ = ["Antithetic", "Draw", "Estimator", "Finished", "Mean", "Samples", "Variance", "sample"]

_THEN = "; then "  # stands between why an input stopped and what was taken after
_IN_STEP = 8  # draws of an input in one micro-batch, where there are other inputs to fill it


@dataclass(frozen=True)
class Draw:
    """How one draw is made: the mean over `size` samples, in mirrored pairs x + e, x - e if so asked.

    With `cuts` the network's gradient is factored there over the samples of a draw; `beside(i)` says whether draw i
    comes with the plain mean of the same noise. `stacked` draws are (2, *features), plain and factored.
    """

    size: int = 1
    mirrored: bool = False
    cuts: int | tuple[str, ...] | None = None
    beside: Callable[[int], bool] = lambda index: False
    stacked: bool = False


@dataclass(frozen=True, eq=False)
class Samples:
    """A stream of samples that can be computed in any order and grouping.

    `draw(inputs, indices, how)` gives the draws (inputs, draws, *features) and the plain maps beside them, or None;
    `ahead` says which will be asked for next. `rows` is how many samples fit one call.
    """

    inputs: int
    rows: int
    n_samples: int | Until
    draw: Callable[[Sequence[int], range, Draw], tuple[Tensor, Tensor | None]]
    ahead: Callable[[Sequence[int], range, Draw], None] = lambda inputs, indices, how: None
    report: Callable[[int, int, float | None], None] = lambda done, total, error: None
    listening: bool = False
    earlier: Estimate | None = None


@dataclass(frozen=True, eq=False)
class Finished:
    """The maps of W inputs, and the mean squared error per element that they would have with t times the draws.

    `power` is the signal's, `power_error` its standard error; `plain(t)` the squared error of the plain mean of the
    same samples, `bias` the part of `squared` that more draws do not lower. `still` are the inputs whose draws were all
    the same. None, or infinite, is what is not known.
    """

    values: Tensor
    standard_error: Tensor | None
    power: Tensor
    power_error: Tensor
    squared: Callable[[float], Tensor]
    plain: Callable[[float], Tensor]
    bias: Tensor
    still: Tensor

    def relative(self, times: float = 1.0) -> Tensor:
        """The relative RMS error of each map, infinite where there is no signal yet."""
        return self._relative(self.squared(times))

    def _relative(self, squared: Tensor) -> Tensor:
        error = (squared / self.power.clamp(min=torch.finfo(torch.float64).tiny)).sqrt()
        known = torch.where(self.power > 2 * self.power_error, error, torch.inf)  # nor is it of what is not finite
        # Estimates that were shrunk to nothing have no error of their own either, and are not certain for it.
        return torch.where(self.still & (squared == 0), 0.0, known.nan_to_num(nan=torch.inf, posinf=torch.inf))


class Estimator(ABC, Value):
    """Abstract: an estimator says how a draw is made and what is made of the draws."""

    order = 2
    """How many central moments are accumulated."""

    least = 1
    """The fewest samples."""

    @abstractmethod
    def how(self, n_samples: int | Until) -> Draw:
        """How a draw is made, if so many samples are asked for."""

    @abstractmethod
    def finish(self, moments: Moments) -> Finished:
        """The maps and their error."""

    def check(self, features: tuple[int, ...]) -> None:
        """Raises ArgumentError, before any work, for inputs whose maps it cannot estimate."""

    def settled(self, size: int) -> "Estimator":
        """The same with the draws of `size` samples that a run had, whatever rule gave them."""
        return self

    def cost(self, base: Cost, n_samples: int | Until) -> Cost:
        """The passes for one input, at most."""
        how = self.how(n_samples)
        draws = counts(n_samples, how.size)[-1]
        if isinstance(n_samples, Until):
            draws += -(-n_samples.further // how.size)
        beside = sum(how.beside(i) for i in range(draws)) * how.size
        return base * (draws * how.size) + Cost(backward=base.backward * beside)

    @property
    def words(self) -> str:
        """What a caption says of it, after the method's name; empty for the plain mean."""
        return ""


@dataclass(frozen=True)
class Mean(Estimator):
    """The plain mean, unbiased; standard error s / sqrt(n) per element, s^2 the unbiased variance of the samples."""

    def how(self, n_samples: int | Until) -> Draw:
        return Draw()

    def finish(self, moments: Moments) -> Finished:
        return mean_of(moments)


@dataclass(frozen=True)
class Antithetic(Estimator):
    """The mean over mirrored pairs x + e, x - e, unbiased; a pair counts as one draw, of its mean.

    What is odd in the noise cancels within a pair: the variance falls where the map is nearly linear in the input, and
    never doubles where it is even.

    Example:
        >>> import torch, pellucid as pl
        >>> a = pl.SmoothGrad(n_samples=8, estimator=pl.Antithetic())(
        ...     pl.TorchModel(torch.nn.Linear(3, 2)), torch.rand(1, 3)
        ... )
        >>> a.samples_used, a.estimate.state["draws"].tolist()
        (8, [4])
    """

    least = 2

    def how(self, n_samples: int | Until) -> Draw:
        return Draw(size=2, mirrored=True)

    def finish(self, moments: Moments) -> Finished:
        return mean_of(moments)

    @property
    def words(self) -> str:
        return "antithetic pairs"


@dataclass(frozen=True)
class Variance(Estimator):
    """The unbiased variance s^2 of the samples; standard error sqrt((m4 - (n-3)/(n-1) s^4) / n) per element."""

    order = 4
    least = 2

    def how(self, n_samples: int | Until) -> Draw:
        return Draw()

    def finish(self, moments: Moments) -> Finished:
        n = moments.count
        _, m2, _, m4 = moments.central
        variance = m2 / max(n - 1, 1)
        of_variance = (m4 / n - (n - 3) / max(n - 1, 1) * variance**2) / n
        noise = of_variance.clamp(min=0)  # never below zero but by rounding
        return _unbiased(variance, noise, None, moments)


def mean_of(moments: Moments) -> Finished:
    """The mean of independent draws, with all that they show of its error."""
    return _unbiased(moments.mean, moments.noise, power_error(moments.sums, moments.count), moments)


def _unbiased(values: Tensor, noise: Tensor, spread: Tensor | None, moments: Moments) -> Finished:
    known = moments.count > 1
    squared = per_input(noise) if known else torch.full((len(values),), torch.inf, dtype=torch.float64).to(values)
    own = per_input(values.square()) - squared
    return Finished(
        values=values.to(moments.dtype),
        standard_error=noise.sqrt().to(moments.dtype) if known else None,
        power=own,
        power_error=torch.zeros_like(own) if spread is None else spread,
        squared=lambda times: squared / times,
        plain=lambda times: squared / times,
        bias=torch.zeros_like(squared),
        still=moments.still,
    )


def sample(samples: Samples, estimator: Estimator) -> Estimate:
    """The estimate of each input: draws in step for as many inputs as fill a micro-batch, each until its own stop."""
    how = estimator.how(samples.n_samples)
    run = _Run(samples, estimator, how)
    for wave in run.waves():
        run.take(wave)
    return run.collected()


@dataclass(eq=False)
class _Run:
    samples: Samples
    estimator: Estimator
    how: Draw
    done: int = 0
    into: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        n = self.samples.n_samples
        self.until = n if isinstance(n, Until) else None
        self.further = -(-self.until.further // self.how.size) if self.until else 0
        self.end = counts(n, self.how.size)[-1]
        self.looks = set(counts(Until(error=1.0, at_most=max(most(n), 2)), self.how.size))
        self.taken = [0] * self.samples.inputs
        self.stops = [0] * self.samples.inputs
        if self.samples.earlier is not None:
            self.taken = [int(draws) for draws in self.samples.earlier.state["draws"]]
            self.stops = [int(draws) for draws in self.samples.earlier.state["stop"]]
        self.expected = [max(self.end + self.further - taken, 0) for taken in self.taken]
        self.stopped = [""] * self.samples.inputs
        self.draws = list(self.taken)
        self.error: float | None = None

    def waves(self) -> Iterator[list[int]]:
        """Inputs that go together: as many as keep a micro-batch full, and all with as many draws behind them."""
        first = counts(self.samples.n_samples, self.how.size)[0]
        together = max(self.samples.rows // (self.how.size * min(_IN_STEP, first)), 1)
        behind = list(zip(self.taken, self.stops, strict=True))
        for one in sorted(set(behind)):
            alike = [i for i in range(self.samples.inputs) if behind[i] == one]
            yield from (alike[start : start + together] for start in range(0, len(alike), together))

    def take(self, wave: list[int]) -> None:
        """All draws of these inputs, each until its stop."""
        taken, stop = self.taken[wave[0]], self.stops[wave[0]]
        moments = self._resumed(wave) if taken else None
        if moments is not None and self.until and -(-self.until.at_least // self.how.size) <= stop < taken:
            assert self.samples.earlier is not None  # noqa: S101  # something was taken
            why = [self.samples.earlier.stopped[i].partition(_THEN)[0] for i in wave]
            self._leave(wave, moments, why, stop)  # it had stopped, and goes on from there
            return
        for count in counts(self.samples.n_samples, self.how.size, taken):
            moments = self._to(count, wave, moments)
            if self.until is None:
                break
            finished = self.estimator.finish(moments)
            why = [self._verdict(finished, row, count) for row in range(len(wave))]
            ready = [row for row, reason in enumerate(why) if reason]
            going = [row for row, reason in enumerate(why) if not reason]
            if ready:
                self._leave([wave[row] for row in ready], moments.rows(ready), [why[row] for row in ready], count)
            if not going:
                return
            for row in going:  # an expectation by 1/n, for the time that is left
                ratio = min(float(finished.relative()[row] / self.until.error), 1e3) ** 2
                self.expected[wave[row]] = min(int(count * ratio), self.end) + self.further - taken
            if ready:
                wave, moments = [wave[row] for row in going], moments.rows(going)
        assert moments is not None  # noqa: S101  # there is one count at the least
        why = [f"the {moments.count * self.how.size} samples asked for were taken"] * len(wave)
        self._leave(wave, moments, why, moments.count)

    def _resumed(self, wave: list[int]) -> Moments:
        assert self.samples.earlier is not None  # noqa: S101  # something was taken
        return Moments.of(self.samples.earlier.state, wave, self.samples.earlier.values[wave], self.estimator.order)

    def _to(self, count: int, wave: list[int], moments: Moments | None) -> Moments:
        """The moments once each input has `count` draws."""
        start = 0 if moments is None else moments.count
        fitting = max(self.samples.rows // (len(wave) * self.how.size), 1)
        blocks = -(-(count - start) // fitting)  # as few calls as fit, of nearly equal size
        size = max(-(-(count - start) // max(blocks, 1)), 1)
        size += size % 2 and size < fitting  # an odd row more keeps one of two threads waiting
        ranges = [range(at, min(at + size, count)) for at in range(start, count, size)]
        for k, indices in enumerate(ranges):
            if k + 1 < len(ranges):
                self.samples.ahead(wave, ranges[k + 1], self.how)
            draws, plain = self.samples.draw(wave, indices, self.how)
            if moments is None:
                moments = Moments(draws[:, 0], self.estimator.order)
            for at, index in enumerate(indices):
                beside = plain is not None and self.how.beside(index)
                moments.add(draws[:, at], plain[:, at] if plain is not None and beside else None)
                if self.samples.listening and moments.count > 1 and moments.count in self.looks:
                    self.error = float(self.estimator.finish(moments).relative().max())
            self.done += len(wave) * len(indices)
            size_of = self.how.size
            self.samples.report(self.done * size_of, sum(self.expected) * size_of, self.error)
        assert moments is not None  # noqa: S101  # every count is one draw at the least
        return moments

    def _verdict(self, finished: Finished, row: int, count: int) -> str:
        """Why this input stops here, or nothing."""
        assert self.until is not None  # noqa: S101  # only asked then
        goal, n = self.until.error, count * self.how.size

        def more() -> float | None:
            times = _needed(lambda times: float(finished.relative(times)[row]), goal)
            return times * n - n if times else None

        return verdict(float(finished.relative()[row]), goal, f"{n} samples", last=count >= self.end, more=more)

    def _leave(self, inputs: list[int], moments: Moments, why: Sequence[str], stop: int) -> None:
        if self.further:
            moments = self._to(stop + self.further, inputs, moments)
            why = [f"{reason}{_THEN}{self.further * self.how.size} more" for reason in why]
        finished = self.estimator.finish(moments)
        state = moments.state() | {"stop": torch.full((len(inputs),), stop)}
        found = {"values": finished.values} | {f"state.{name}": part for name, part in state.items()}
        if moments.count > 1:
            found["error"] = finished.relative()
        if finished.standard_error is not None:
            found["standard_error"] = finished.standard_error
        for name, part in found.items():
            if len(inputs) == self.samples.inputs:
                self.into[name] = part
                continue
            if name not in self.into:  # one tensor for all inputs, filled as they leave: nothing is held twice
                self.into[name] = part.new_zeros((self.samples.inputs, *part.shape[1:]))
            self.into[name][inputs] = part
        for row, i in enumerate(inputs):
            self.expected[i] = moments.count - self.taken[i]
            self.draws[i], self.stopped[i] = moments.count, why[row]

    def collected(self) -> Estimate:
        """What all inputs left."""
        return Estimate(
            values=self.into["values"],
            standard_error=self.into.get("standard_error"),
            samples=tuple(draws * self.how.size for draws in self.draws),
            stopped=tuple(self.stopped),
            error=self.into.get("error"),
            state={n.removeprefix("state."): part for n, part in self.into.items() if n.startswith("state.")},
        )


def _needed(error: Callable[[float], float], goal: float) -> float | None:
    """How many times the samples reach the goal, by bisection between powers of two."""
    high = 1.0
    while error(high) > goal:
        high *= 2
        if high > 2**20:
            return None
    low = high / 2
    for _ in range(20):
        middle = (low + high) / 2
        low, high = (low, middle) if error(middle) <= goal else (middle, high)
    return high

"""The engine of black-box methods: a stream of altered copies of one input, their scores, and what the scores show.

All that is kept of an input is the scores of its queries, in order. The queries follow from (seed, input key, index),
so a map, its error and any extension are functions of the scores alone: a longer run replays the shorter one.
"""

import math
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float
from torch import Tensor

from pellucid.core.abstract_model import Model
from pellucid.core.stopping import Until, counts, most, verdict
from pellucid.core.target import Targets
from pellucid.errors import ArgumentError, MemoryLimit, MissingNeed, ModelError

__all__ = ["Answers", "Fit", "Question", "Run", "affordable"]


@dataclass(frozen=True, eq=False)
class Fit:
    """What scores show: `values` (S,) of segments, and the squared standard error of each, or None.

    `independent` is how many of the values have an error of their own, to tell signal from noise: fewer than there are
    where neighbours share theirs. `change` is the number that the values divide, for methods that do; `notes` are facts
    for the recipe, `findings` what a user should know, `exact` says that nothing is estimated.
    """

    values: np.ndarray
    variance: np.ndarray | None = None
    independent: int | None = None
    change: float | None = None
    notes: dict[str, float | str] = field(default_factory=dict)
    findings: tuple[str, ...] = ()
    exact: bool = False
    contrast: "Fit | None" = None
    """What of the values tells them apart, where they stand on a constant that is no signal: its error counts."""

    def relative(self) -> float:
        """The relative RMS error of the map: infinite where no signal is known."""
        if self.contrast is not None:
            return self.contrast.relative()
        if self.variance is None or not self.values.size or not np.isfinite(self.variance).all():
            return math.inf
        noise = float(self.variance.mean())
        power = float((self.values**2).mean()) - noise
        # The standard error of the power: values and errors are independent normals, as nearly as matters here.
        spread = 4 * float((self.values**2 * self.variance).mean()) + 2 * float((self.variance**2).mean())
        spread = math.sqrt(max(spread, 0.0) / (self.independent or self.values.size))
        if noise == 0:  # scores that have not differed yet show no signal either
            return 0.0 if self.exact or self.values.any() else math.inf
        return math.sqrt(noise / power) if math.isfinite(power) and power > 2 * spread else math.inf


class Question(ABC):
    """What is asked about one input. A draw is `size` queries that go together (a pair, a permutation); a query is
    `width` copies, whose mean score is its answer.
    """

    size: int = 1
    width: int = 1
    least: int = 1
    """The fewest draws that give a map."""

    believed: int = 1
    """The fewest draws whose error is known well enough to stop by it."""

    end: int | None = None
    """How many draws there are at all, if the question is to be answered exactly: no more than were allowed."""

    @abstractmethod
    def rows(self, queries: Sequence[int], copies: Sequence[int]) -> Float[Tensor, "m *features"]:
        """The altered inputs: of query queries[i] the copy number copies[i]."""

    def codes(self, queries: Sequence[int]) -> list[bytes] | None:
        """Equal for queries that ask the same; None where no two do."""
        return None

    @abstractmethod
    def fit(self, scores: Float[np.ndarray, " n"]) -> Fit:
        """What the scores of the first n queries, whole draws, show. Scores that could not be had are NaN."""


@dataclass(eq=False)
class Answers:
    """The scores of one input's queries, as far as they are known; what was asked before is not asked again.

    A query on which the model fails, alone, or answers with NaN is NaN; `failures` says why.
    """

    model: Model
    question: Question
    target: Targets
    like: Float[Tensor, "1 *features"]
    known: Float[np.ndarray, " n"] = field(default_factory=lambda: np.empty(0))
    tell: Callable[[int], None] = lambda rows: None
    failures: list[str] = field(default_factory=list)
    at_once: int = sys.maxsize
    """The most rows that a function was seen to take, where more of them failed and none alone."""

    _careful: int = sys.maxsize
    _failed: int = 0
    _firsts: dict[bytes, int] = field(default_factory=dict)
    _same: list[int] = field(default_factory=list)

    def upto(self, count: int) -> Float[np.ndarray, " count"]:
        """The scores of the first `count` queries. Ctrl-C leaves those in `known` that were there by then."""
        start = len(self.known)
        if count <= start:
            return self.known[:count]
        same = self._repeated(count)
        fresh = [query for query in range(start, count) if same[query] == query]
        scores = np.full(count, np.nan)
        scores[:start] = self.known
        width = self.question.width
        flat = [(query, copy) for query in fresh for copy in range(width)]
        answers = np.empty(len(flat))
        done = 0
        try:
            while done < len(flat):
                part, failed = flat[done : done + self._piece(len(flat) - done)], self._failed
                rows = self.question.rows([query for query, _ in part], [copy for _, copy in part])
                answers[done : done + len(part)] = self._scores(rows)
                # Where rows fail, those beside them are asked again: the fewer of them, the better.
                grown = min(2 * self._careful, sys.maxsize)
                self._careful = grown if self._failed == failed else max(len(part) // 2, 1)
                done += len(part)
                self.tell(len(part))
        finally:
            whole = done // width
            scores[fresh[:whole]] = answers[: whole * width].reshape(whole, width).mean(1)
            reached = count if whole == len(fresh) else fresh[whole]
            scores = scores[same[:count]]
            self.known = scores[:reached]
        self.tell((count - start - len(fresh)) * width)  # what need not be asked
        self._check()
        return self.known

    def repeats(self, count: int) -> int:
        """How many of the first `count` queries ask what one before them asked, and so were not asked."""
        return int((self._repeated(count) != np.arange(count)).sum())

    def _repeated(self, count: int) -> np.ndarray:
        """For each query the first one that asks the same."""
        start = len(self._same)
        codes = self.question.codes(range(start, count)) if count > start else None
        for query in range(start, count):
            self._same.append(query if codes is None else self._firsts.setdefault(codes[query - start], query))
        return np.array(self._same[:count])

    def _piece(self, left: int) -> int:
        """How many rows to ask about at once, so that as few pieces as fit are of nearly equal size."""
        most = min(self.model.rows(self.like), self.at_once, self._careful)
        return -(-left // -(-left // most))

    def _scores(self, rows: Float[Tensor, "m *features"]) -> np.ndarray:
        try:
            found = self.model.scores(rows, self.target.repeat(len(rows)))
        except (MemoryLimit, MissingNeed):
            raise
        except ModelError as error:
            if not self.model.fails_by_row:
                raise
            if len(rows) == 1:
                self._failed += 1
                self.failures.append(str(error))
                return np.array([np.nan])
            half, failed = len(rows) // 2, self._failed
            halves = np.concatenate([self._scores(rows[:half]), self._scores(rows[half:])])
            if self._failed == failed:  # there were too many of them, and nothing wrong with any
                self.at_once = min(self.at_once, half)
            return halves
        scores = found.detach().cpu().double().numpy()
        broken = ~np.isfinite(scores)
        if broken.any():
            self.failures.extend([f"{self.model.name} answered with NaN or infinity"] * int(broken.sum()))
            scores = np.where(broken, np.nan, scores)
        return np.asarray(scores)

    def _check(self) -> None:
        lost = int(np.isnan(self.known).sum())
        if 2 * lost > len(self.known):
            first = self.failures[0] if self.failures else "what was said before"
            raise ModelError(
                f"{self.model.name} failed on {lost} of {len(self.known)} altered inputs: too many to explain it. The "
                f"first said: {first}. Try other values for what is absent: baseline=..."
            )


def affordable(budget: int | Until | None, spent: int) -> int:
    """The model calls that are left of a budget, before any further ones; None is no limit."""
    if budget is None:
        return sys.maxsize
    return max((max(budget.at_most, budget.at_least) if isinstance(budget, Until) else budget) - spent, 0)


@dataclass(eq=False)
class Run:
    """One input's queries until its stop: at a budget of model calls, or once an error is reached.

    `spent` calls of the budget were made before. `report` is told the rows that were asked and the error, as they come.
    """

    answers: Answers
    budget: int | Until | None
    spent: int
    method: str
    report: Callable[[int, float | None], None] = lambda rows, error: None
    listening: bool = False
    fitted: Fit | None = None
    error: float | None = None
    draws: int = 0
    stopped: str = ""
    interrupted: bool = False

    def __post_init__(self) -> None:
        question = self.answers.question
        self.unit = question.size * question.width
        self.until = self.budget if isinstance(self.budget, Until) else None
        self.most = affordable(self.budget, self.spent) // self.unit
        if self.most < (question.end or question.least):
            raise ArgumentError(
                f"`budget` is {self.spent + (question.end or question.least) * self.unit} model calls or more, for "
                f"{self.method} of this input. Got {most(self.budget or 0)}."
            )
        self.expected = question.end or self.most
        self.answers.tell = self._told

    def take(self) -> None:
        """All draws of this input, until its stop."""
        if self.answers.question.end is not None:
            self._fit(self.answers.question.end)
            self.stopped = f"exact after all {self.draws * self.unit} calls that there are"
            return
        if self.until is None:
            self._fit(self.most)
            again = self.answers.repeats(self.draws * self.answers.question.size) * self.answers.question.width
            self.stopped = f"the budget of {self.budget} model calls was spent"
            self.stopped += f", {again} of them on copies that had been asked about" if again else ""
            return
        for draws in self._looks(self.until):
            fitted = self._fit(draws)
            self.stopped = self._verdict(fitted, draws)
            if self.stopped:
                break
        if self.until.further:
            more = self.until.further // self.unit
            self._fit(self.draws + more)
            self.stopped += f"; then {more * self.unit} more"

    def partial(self) -> bool:
        """Make what there is of what was asked, after an interruption; False if that is nothing."""
        question = self.answers.question
        draws = len(self.answers.known) // question.size
        if draws < (question.end or question.least):
            return False
        try:
            self._fit(draws)
        except ModelError:  # too little has a score
            return False
        self.interrupted, self.stopped = True, f"interrupted after {self.spent + draws * self.unit} model calls"
        return True

    def _looks(self, until: Until) -> list[int]:
        least = max(self.answers.question.least, self.answers.question.believed)
        inner = Until(error=until.error, at_most=max(self.most * self.unit, 2),
                      at_least=max(until.at_least - self.spent, 0))  # fmt: skip
        looks = [draws for draws in counts(inner, self.unit) if least <= draws <= self.most]
        return looks or [self.most]

    def _fit(self, draws: int) -> Fit:
        scores = self.answers.upto(draws * self.answers.question.size)
        self.draws, self.fitted = draws, self.answers.question.fit(scores)
        if self.listening:
            self.error = self.fitted.relative()
            self.report(0, self.error)
        return self.fitted

    def _told(self, rows: int) -> None:
        self.report(rows, self.error)

    def _verdict(self, fitted: Fit, draws: int) -> str:
        assert self.until is not None  # noqa: S101  # only asked then
        error, goal, calls = fitted.relative(), self.until.error, draws * self.unit
        return verdict(
            error, goal, f"{self.spent + calls} model calls", last=draws >= self.most,
            more=lambda: calls * ((error / goal) ** 2 - 1),
        )  # fmt: skip

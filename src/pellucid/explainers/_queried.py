"""Methods that alter the input and look at what becomes of the score: the model is a black box.

A method says which altered copies to ask about and what their scores show (`question`); the engine asks
(core/queries.py). A budget counts model calls, one for each row that the model is given: the clean prediction, the
diagnosis' repetition and every altered copy.
"""

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from pellucid.core.baseline import Background, Baseline, FeatureMean, standing_in
from pellucid.core.checks import check_seed
from pellucid.core.estimate import Estimate, Interrupted
from pellucid.core.explainer import Call, Explainer
from pellucid.core.model import Model
from pellucid.core.queries import Answers, Fit, Question, Run, affordable
from pellucid.core.random import Key
from pellucid.core.segments import HELD, PatchesOrColumns, Segments, check_segments, places_of, segmented
from pellucid.core.stopping import Until, lengthened
from pellucid.core.target import Targets
from pellucid.errors import ArgumentError, ModelError
from pellucid.explainers._background import absent

__all__ = ["Budgeted", "Masked", "Place", "Queried", "Segmented", "painted"]

_ROUNDING = 1e3 * np.finfo(np.float64).eps
"""Of the largest score: what is left of a sum over sets, where nothing should be."""


@dataclass(frozen=True, eq=False)
class Place:
    """One input as a question sees it: `x` (1, *features), what stands in for what is absent (n, *features), the labels
    of its places, and the key of its random numbers.
    """

    x: Float[Tensor, "1 *features"]
    absent: Float[Tensor, "n *features"]
    labels: Int[Tensor, "*places"]
    stream: Key

    @property
    def players(self) -> int:
        """How many segments the input has."""
        return int(self.labels.max()) + 1

    def spread(self, values: Shaped[Tensor, "m *own"]) -> Tensor:
        """What belongs to places, broadcast over the channels of the input: (m, 1, *places); (m, *features) where each
        feature has a label of its own.
        """
        return values if self.labels.ndim == self.x.ndim - 1 else values[:, None]

    def away(self, copies: Sequence[int]) -> Float[Tensor, "m *features"]:
        """What stands in for what is absent in each of these copies; of one baseline, that one."""
        return self.absent if len(self.absent) == 1 else self.absent[list(copies)]


@dataclass(frozen=True, kw_only=True)
class Queried(Explainer):
    """Abstract: a black-box method that asks about altered copies, all there are of them.

    `baseline` is what stands in for what is absent: a Baseline, or a Background of inputs, over which each score is
    averaged (a call for each of them).
    """

    baseline: Baseline | Background = field(default_factory=FeatureMean)

    def __post_init__(self) -> None:
        if not isinstance(self.baseline, Baseline | Background):
            raise ArgumentError(
                f"`baseline` is one such as pl.Pixel(0.0) or pl.FeatureMean(), or pl.Background.of(rows). Got "
                f"{self.baseline!r}."
            )

    @property
    def limit(self) -> int | Until | None:
        """The most model calls for each input; None where the method itself says how many."""
        return None

    def stream(self, key: Key) -> Key:
        """The key of an input's random numbers."""
        return key

    @abstractmethod
    def question(self, place: Place, calls: int) -> Question:
        """What to ask about one input with so many model calls, and what the answers show."""

    def divided(self, model: Model, x: Float[Tensor, "b *features"]) -> Int[Tensor, "b *places"]:
        """The segment of each place; of methods without segments each place is one."""
        sides = places_of(x.shape[1:])
        return torch.arange(math.prod(sides), device=x.device).view(sides).expand(len(x), *sides)

    def goals(self, model: Model, targets: Targets) -> Targets:
        """What is scored: the targets themselves, unless the method is of another number."""
        return targets

    def attribute(self, model: Model, x: Float[Tensor, "b *features"], targets: Targets, call: Call) -> Estimate:
        labels = self.divided(model, x)
        away = self._absent(model, x)
        goals = self.goals(model, targets)
        places = [
            Place(x[i : i + 1], away[:, min(i, away.shape[1] - 1)], labels[i], self.stream(call.keys[i]))
            for i in range(len(x))
        ]  # fmt: skip
        runs = [self._run(model, place, goals[i : i + 1], i, call) for i, place in enumerate(places)]
        rows = [0] * len(runs)
        for i, run in enumerate(runs):
            run.report = self._reporter(call, runs, rows, i)
            try:
                run.take()
            except (KeyboardInterrupt, ModelError) as stop:
                done = range(i + run.partial())
                each = [self._estimate(runs[k : k + 1], places[k : k + 1]) for k in done]
                so_far = self.shortened(run.spent + run.draws * run.unit) if len(done) > i else self
                parts = [(k, self if k < i else so_far, each[k]) for k in done]
                if isinstance(stop, ModelError):
                    stop.method, stop.parts = self, tuple(parts)
                    raise
                raise Interrupted(self, parts) from None
        return self._estimate(runs, places)

    def shortened(self, calls: int) -> "Queried":
        """The method that makes so many model calls only."""
        return self

    def _reporter(
        self, call: Call, runs: Sequence[Run], rows: list[int], i: int
    ) -> Callable[[int, float | None], None]:
        """Tells of all inputs together what one run tells of itself."""

        def report(more: int, error: float | None) -> None:
            rows[i] += more
            call.report(
                sum(rows), sum(max(run.expected * run.unit, n) for run, n in zip(runs, rows, strict=True)), error
            )

        return report

    def _absent(self, model: Model, x: Tensor) -> Float[Tensor, "n own *features"]:
        if isinstance(self.baseline, Background):
            return absent(self.baseline, model, x)
        return standing_in(self.baseline, x, model.preprocess, model.packing)[None]

    def _run(self, model: Model, place: Place, target: Targets, i: int, call: Call) -> Run:
        question = self.question(place, affordable(self.limit, call.spent))
        known = np.empty(0)
        # All sets that there are come in another order than drawn ones, so what was asked before is asked anew.
        if call.earlier is not None and bool(call.earlier.state["exact"][i]) == (question.end is not None):
            count = int(call.earlier.state["asked"][i])
            known = call.earlier.state["answers"][i, :count].cpu().double().numpy().copy()
        answers = Answers(model, question, target, place.x, known)
        return Run(answers, self.limit, call.spent, self.card.title, listening=call.listening)

    def _estimate(self, runs: Sequence[Run], places: Sequence[Place]) -> Estimate:
        """What all inputs show."""
        fits = [_fitted(run) for run in runs]
        like = places[0].x
        digits = torch.promote_types(like.dtype, torch.float32)

        def gathered(each: Sequence[np.ndarray]) -> Tensor:
            maps = [painted(values, place) for values, place in zip(each, places, strict=True)]
            return torch.cat(maps).to(like.device, digits)

        values = gathered([fit.values for fit in fits])
        names = dict.fromkeys(name for fit in fits for name in fit.notes)
        notes = {name: tuple(fit.notes.get(name, "") for fit in fits) for name in names}
        residual = None
        if all(fit.change is not None for fit in fits):
            left = [_rest(run, fit) for run, fit in zip(runs, fits, strict=True)]
            residual = torch.tensor(left, dtype=digits, device=like.device)
            notes["change"] = tuple(fit.change or 0.0 for fit in fits)
        most = max(len(run.answers.known) for run in runs)
        answers = torch.full((len(runs), most), torch.nan, dtype=torch.float64)
        for row, run in zip(answers, runs, strict=True):
            row[: len(run.answers.known)] = torch.from_numpy(run.answers.known)
        sampled = self.card.sampled and any(fit.variance is not None for fit in fits)
        return Estimate(
            values=values,
            standard_error=gathered([np.sqrt(_variance(fit)) for fit in fits]) if sampled else None,
            samples=tuple((run.spent + run.draws * run.unit) * self.card.sampled for run in runs),
            stopped=tuple(
                run.stopped if self.card.sampled or run.interrupted else "nothing is sampled" for run in runs
            ),
            error=torch.tensor([fit.relative() for fit in fits], dtype=torch.float64) if self.card.sampled else None,
            state={
                "answers": answers,
                "exact": torch.tensor([run.answers.question.end is not None for run in runs]),
                "asked": torch.tensor([len(run.answers.known) for run in runs]),
                "draws": torch.tensor([run.draws for run in runs]),
                **self._segments(places),
            },
            notes=notes,
            residual=residual,
            remarks=tuple(tuple(_remarks(run, fit)) for run, fit in zip(runs, fits, strict=True)),
        )

    def _segments(self, places: Sequence[Place]) -> dict[str, Tensor]:
        return {}


@dataclass(frozen=True, kw_only=True)
class Budgeted(Queried):
    """Abstract: a method that draws what it asks about, until `budget` model calls are made for each input, or an error
    is reached: Until(error=..., at_most=calls).
    """

    budget: int | Until = 1024
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        budget: object = self.budget
        if not isinstance(budget, Until) and (isinstance(budget, bool) or not isinstance(budget, int) or budget < 1):
            raise ArgumentError(
                f"`budget` is a whole number of model calls, or pl.Until(error=0.5, at_most=4000). Got {budget!r}."
            )
        check_seed(self.seed)

    @property
    def limit(self) -> int | Until | None:
        return self.budget

    def stream(self, key: Key) -> Key:
        return key.stream(self.seed)

    def extended(self, taken: Sequence[int], draws: int, more: int | Until) -> "Budgeted":
        if isinstance(self.budget, int) and isinstance(more, int):
            return replace(self, budget=self.budget + more)
        return replace(self, budget=lengthened(self.budget, taken, more))

    def shortened(self, calls: int) -> "Budgeted":
        return replace(self, budget=calls)


@dataclass(frozen=True, kw_only=True)
class Segmented(Queried):
    """Abstract: a method with a score for each segment, which its places share: (B, 1, *places), of tables (B, F)."""

    segments: Segments = field(default_factory=PatchesOrColumns)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_segments(self.segments)

    def divided(self, model: Model, x: Float[Tensor, "b *features"]) -> Int[Tensor, "b *places"]:
        return segmented(self.segments, x, model.preprocess, model.packing)

    def _segments(self, places: Sequence[Place]) -> dict[str, Tensor]:
        return {"segments": torch.stack([place.labels for place in places]).to(torch.int32)}


class Masked(Question):
    """Abstract: queries are sets of segments that are present; the others are as in the baseline, or in each of several
    over which the score is averaged.
    """

    def __init__(self, place: Place) -> None:
        self.place = place
        self.players = place.players
        self.width = len(place.absent)

    @abstractmethod
    def masks(self, queries: Sequence[int]) -> np.ndarray:
        """Which segments are present, (m, S) bool."""

    def rows(self, queries: Sequence[int], copies: Sequence[int]) -> Float[Tensor, "m *features"]:
        present = torch.from_numpy(self.masks(queries)).to(self.place.x.device)
        held = torch.cat([present, torch.ones_like(present[:, :1])], 1)  # HELD is the last
        kept = self.place.spread(held[:, self.place.labels])
        return torch.where(kept, self.place.x, self.place.away(copies))

    def codes(self, queries: Sequence[int]) -> list[bytes] | None:
        return [row.tobytes() for row in np.packbits(self.masks(queries), axis=1)]


def painted(values: Float[np.ndarray, " s"], place: Place) -> Float[Tensor, "1 *map"]:
    """The value of each place's segment, (1, 1, *places), of tables (1, F)."""
    labels = place.labels.cpu()
    return place.spread(torch.where(labels == HELD, 0.0, torch.from_numpy(values)[labels])[None])


def _fitted(run: Run) -> Fit:
    assert run.fitted is not None  # noqa: S101  # every run has one
    return run.fitted


def _rest(run: Run, fit: Fit) -> float:
    """The sum of the values less the change that they divide; none where that is the rounding of the scores."""
    rest = float(fit.values.sum()) - (fit.change or 0.0)
    rounding = _ROUNDING * float(np.nanmax(np.abs(run.answers.known)))
    return rest if abs(rest) > rounding else 0.0


def _variance(fit: Fit) -> np.ndarray:
    """NaN where it is not known."""
    return np.full(fit.values.shape, np.nan) if fit.variance is None else fit.variance


def _remarks(run: Run, fit: Fit) -> list[str]:
    """What is odd about the answers."""
    lost = int(np.isnan(run.answers.known).sum())
    if not lost:
        return list(fit.findings)
    first = run.answers.failures[0] if run.answers.failures else "as before"
    return [
        f"{lost} of {len(run.answers.known)} altered inputs had no score ({first}); they were left out.",
        *fit.findings,
    ]

"""Sets of segments that are taken away until the decision flips: what is asked, in which order, and what it proves.

    lead(A) = z_c(x without A) - max_{k != c} z_k(x without A)

z are logits, or log probabilities, which have the same differences. A set flips the class c if its lead is under zero.
What is known after any number of answers is a function of the answers alone: see `Removals.fit`.
"""

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from pellucid.core.label import Labels
from pellucid.core.prediction import OutputKind
from pellucid.core.queries import Fit, Run
from pellucid.core.target import Target
from pellucid.errors import ArgumentError, ModelError
from pellucid.explainers._queried import Masked, Place

__all__ = ["Lead", "Removals", "Search"]

_NONE = "no other class"
_UNKNOWN = "a class that is not known"
_SMALLEST = "smallest of all: every smaller set was tried, and none flips the class"
_NEEDED = "each segment is needed: with any one of them back the class stays; not all smaller sets were tried"
_FLIPS = "the set flips the class; whether each segment is needed was not tried"
_ALREADY = "the class is not the model's decision on the input as it is"
_NOT_FOUND = "no set was found"


@dataclass(frozen=True)
class Lead(Target):
    """By how much the logit of class `index` is over the highest of the others, or over that of `against`."""

    index: int
    against: int | None = None
    kinds: ClassVar[tuple[OutputKind, ...]] = (OutputKind.LOGITS, OutputKind.PROBABILITIES)

    def score(self, outputs: Float[Tensor, "b *k"], kind: OutputKind) -> Float[Tensor, " b"]:
        logits = _logits(outputs, kind)
        return logits[:, self.index] - logits[:, self.rivals(outputs.shape[1])].amax(1)

    def rivals(self, count: int) -> list[int]:
        """The classes that it is compared with."""
        if count < 2:
            raise ArgumentError("A decision is between two classes at least, but the model has one output.")
        return [k for k in range(count) if k != self.index] if self.against is None else [self.against]

    @property
    def classes(self) -> tuple[int, ...]:
        return (self.index,)

    def describe(self, labels: Labels) -> str:
        return f"lead of {labels.short(self.index)}"


def _logits(outputs: Float[Tensor, "b k"], kind: OutputKind) -> Float[Tensor, "b k"]:
    """Logits, but for a number that all classes share."""
    return outputs if kind is OutputKind.LOGITS else outputs.clamp(min=torch.finfo(outputs.dtype).tiny).log()


class Removals(Masked):
    """Sets of segments that are taken away, in the order in which they come to be asked about."""

    least = 3
    """The input, one set, and the set that flips once more."""

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        self.sets: list[frozenset[int]] = []

    def masks(self, queries: Sequence[int]) -> np.ndarray:
        present = np.ones((len(queries), self.players), dtype=bool)
        for row, query in zip(present, queries, strict=True):
            row[list(self.sets[query])] = False
        return present

    def best(self, margins: Float[np.ndarray, " n"]) -> frozenset[int] | None:
        """The smallest set that was seen to flip the class, of those of a size the one by most."""
        found = [(len(each), margin, i) for i, (each, margin) in self._asked(margins) if margin < 0]
        return self.sets[min(found)[2]] if found else None

    def untried(self, size: int, margins: Float[np.ndarray, " n"]) -> int:
        """How many sets of fewer segments have no margin yet."""
        tried = sum(len(each) < size for _, (each, _) in self._asked(margins))
        return sum(math.comb(self.players, k) for k in range(size)) - tried

    def proof(self, best: frozenset[int], margins: Float[np.ndarray, " n"]) -> str:
        """What the margins prove of the best set."""
        if not self.untried(len(best), margins):
            return _SMALLEST if best else _ALREADY
        tried = {each for _, (each, _) in self._asked(margins)}
        return _NEEDED if all(best - {j} in tried for j in best) else _FLIPS

    def fit(self, scores: Float[np.ndarray, " n"]) -> Fit:
        if not np.isfinite(scores[0]):
            raise ModelError("SmallestChange begins with the decision on the input itself, and the model has none.")
        best = self.best(scores)
        values = np.zeros(self.players)
        values[list(best or ())] = 1
        lowest = scores[self.sets.index(best)] if best is not None else np.nanmin(scores)
        proof = _NOT_FOUND if best is None else self.proof(best, scores)
        notes: dict[str, float | str] = {
            "segments": float(self.players), "size": float(len(best or ())), "proof": proof,
            "margin": float(scores[0]), "margin after": float(lowest),
        }  # fmt: skip
        return Fit(values, notes=notes, findings=self._findings(best, scores))

    def _asked(self, margins: Float[np.ndarray, " n"]) -> list[tuple[int, tuple[frozenset[int], float]]]:
        """The sets that have a margin, with it."""
        return [(i, pair) for i, pair in enumerate(zip(self.sets, margins, strict=True)) if np.isfinite(pair[1])]

    def _findings(self, best: frozenset[int] | None, margins: Float[np.ndarray, " n"]) -> tuple[str, ...]:
        if best is None:
            most = max(map(len, self.sets))
            more = (
                "Raise `budget`, take fewer segments, or" if most < self.players else "There is no more to take away:"
            )
            return (
                f"No set of segments was found that flips the class: up to {most} of {self.players} were taken away, "
                f"and its lead fell from {margins[0]:.3g} to {np.nanmin(margins):.3g} at the least. {more} take "
                "another baseline.",
            )
        if not best:
            return (
                "Another class leads already, so nothing has to be taken away: explain the class that the model chose.",
            )
        if self.proof(best, margins) == _FLIPS:
            return ("Not all segments of the set need be needed: there was no budget to put each of them back.",)
        return ()


class Search(Run):
    """Asks about sets until one flips the class and, as far as calls are left, until more is proved of it."""

    exhaustive_from: int | None = None

    @property
    def sets(self) -> list[frozenset[int]]:
        return self._removals.sets

    @property
    def _removals(self) -> Removals:
        question = self.answers.question
        assert isinstance(question, Removals)  # noqa: S101  # made so
        return question

    @property
    def left(self) -> int:
        """How many sets can be asked about yet; one call is for the set that is found."""
        return self.most - 1 - len(self.sets)

    def take(self) -> None:
        self._ask([frozenset()])
        if np.isfinite(self.answers.known[0]) and self._best() is None:
            self._grow()
            self._shrink()
            self._try_all_smaller()
        self._conclude()

    def partial(self) -> bool:
        """An interruption leaves the set that was found by then, if there was one."""
        if self.exhaustive_from is not None:  # which a search of so many calls would not have begun
            self.answers.known = self.answers.known[: self.exhaustive_from]
        del self.sets[len(self.answers.known) :]
        if not self.sets or self._best() is None:
            return False
        self._conclude()
        self.interrupted, self.stopped = True, f"interrupted after {self.spent + self.draws} model calls"
        return True

    def _grow(self) -> None:
        """Take away the segment that lowers the lead most, those first that did so in the step before."""
        removed, order = frozenset[int](), list(range(self._removals.players))
        while order and self.left > 0 and self._best() is None:
            margins = self._ask([removed | {j} for j in order])
            margins = [*margins, *[math.nan] * (len(order) - len(margins))]
            ranked = sorted(zip(order, margins, strict=True), key=lambda pair: (math.isnan(pair[1]), pair[1]))
            if math.isnan(ranked[0][1]):
                return
            removed |= {ranked[0][0]}
            order = [j for j, _ in ranked[1:]]

    def _shrink(self) -> None:
        """Put segments back, one at a time, while the class stays flipped."""
        best = None
        while (found := self._best()) != best and found:
            best = found
            self._ask([best - {j} for j in sorted(best)])

    def _try_all_smaller(self) -> None:
        best = self._best()
        if not best or self._removals.untried(len(best), self.answers.known) > self.left:
            return
        self.exhaustive_from = len(self.sets)
        for size in range(1, len(best)):
            self._ask(map(frozenset, itertools.combinations(range(self._removals.players), size)))
            if self._best() != best:
                break
        self.exhaustive_from = None

    def _ask(self, sets: Iterable[frozenset[int]]) -> list[float]:
        """The margins of these sets, in their order, as many as there are calls for."""
        known = {each: i for i, each in enumerate(self.sets)}
        places = []
        for each in sets:
            if each not in known:
                if len(self.sets) >= self.most - 1:
                    break
                known[each] = len(self.sets)
                self.sets.append(each)
            places.append(known[each])
        margins = self.answers.upto(len(self.sets))
        return [float(margins[i]) for i in places]

    def _best(self) -> frozenset[int] | None:
        return self._removals.best(self.answers.known)

    def _conclude(self) -> None:
        """Make the map, and ask once more about the set that flips the class, to see which one takes over."""
        found = self._removals.fit(self.answers.known)
        best = self._best()
        self.draws, self.stopped = len(self.sets), ""
        if best is None:
            self.fitted = replace(found, notes={**found.notes, "flips to": _NONE})
            return
        answers, goal = self.answers, self.answers.target.each[0]
        assert isinstance(goal, Lead)  # noqa: S101  # made so
        self.draws += 1
        try:
            outputs = answers.model.outputs(self._removals.rows([self.sets.index(best)], [0]))
        except ModelError as error:  # what was found stays
            failed = f"Asked once more about the set, to see which class takes over, the model failed: {error}"
            self.fitted = replace(
                found, notes={**found.notes, "flips to": _UNKNOWN}, findings=(*found.findings, failed)
            )
            return
        rivals = goal.rivals(outputs.shape[1])
        rival = rivals[int(outputs[0, rivals].argmax())]
        labels = answers.model.labels or Labels.numbered(outputs.shape[1])
        again = float(goal.score(outputs.double(), answers.target.kind)[0])
        findings = found.findings
        if not again < 0:
            findings += (f"Asked once more about the set, the model kept its class, with a lead of {again:.3g}.",)
        self.fitted = replace(found, notes={**found.notes, "flips to": labels.name(rival)}, findings=findings)

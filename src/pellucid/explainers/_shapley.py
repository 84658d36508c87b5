"""Shapley values of a game of segments: what is asked, and how it is estimated from complementary pairs.

    phi_j = sum_{S without j} |S|! (n - |S| - 1)! / n!  (v(S + j) - v(S))        (Shapley 1953)

v(S) is the score with the segments S present and the others absent. Only the odd part of the game matters,
h(S) = (v(S) - v(complement of S)) / 2, so that sets come in pairs.
"""

import math
from abc import abstractmethod
from collections.abc import Sequence
from functools import cache

import numpy as np
from jaxtyping import Float

from pellucid.core.card import Applicability, Cost, MethodCard, Needs, Per, Scope, Stage
from pellucid.core.queries import Fit
from pellucid.core.random import Key, uniform
from pellucid.core.recipe import Value
from pellucid.core.stopping import Until, most
from pellucid.errors import ModelError
from pellucid.explainers._queried import Masked, Place

__all__ = ["AllSets", "Game", "PairEstimator", "all_fit", "change_of", "shapley_card"]

_MOST_EXACT = 20
"""More players have over a million sets."""

_GOLDEN = (math.sqrt(5) - 1) / 2


class PairEstimator(Value):
    """Abstract: how Shapley values are estimated from the half-differences of complementary pairs."""

    @abstractmethod
    def least(self, players: int) -> int:
        """The fewest pairs, the full and the empty set among them."""

    @abstractmethod
    def believed(self, players: int) -> int:
        """The fewest pairs whose error is known well enough to stop by it."""

    @abstractmethod
    def shapley(self, signs: Float[np.ndarray, "n s"], halves: Float[np.ndarray, " n"], place: Place) -> Fit:
        """The values from h of n sets, +1 for what is present, -1 for what is absent; the first set is the full one."""

    @property
    @abstractmethod
    def words(self) -> str:
        """What a caption says of it, after the method's name; empty for the usual one."""


class AllSets(Masked):
    """Every set that there is, in the order of binary numbers."""

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        self.end = 2**self.players

    def masks(self, queries: Sequence[int]) -> np.ndarray:
        return np.asarray(np.asarray(queries)[:, None] >> np.arange(self.players) & 1 == 1)

    def codes(self, queries: Sequence[int]) -> None:
        """No two are the same."""

    def fit(self, scores: Float[np.ndarray, " n"]) -> Fit:
        if not np.isfinite(scores).all():
            raise ModelError(
                f"Exact Shapley values need the scores of all {len(scores)} sets, but the model failed on "
                f"{int((~np.isfinite(scores)).sum())} of them. Take another baseline."
            )
        values = np.empty(self.players)
        weights = _weights(self.players)
        sets = np.arange(len(scores))
        sizes = np.bitwise_count(sets)
        for player in range(self.players):
            without = sets[sets >> player & 1 == 0]
            values[player] = weights[sizes[without]] @ (scores[without | 1 << player] - scores[without])
        notes: dict[str, float | str] = {"segments": float(self.players)}
        change = change_of(scores[-1], scores[0])
        return Fit(values, np.zeros(self.players), change=change, notes=notes, exact=True)


def all_fit(place: Place, calls: int) -> bool:
    """Whether every set of the segments can be asked about with so many calls."""
    return place.players <= _MOST_EXACT and 2**place.players * len(place.absent) <= calls


class Game(Masked):
    """Pairs of sets: the full and the empty one first, then sets of uniformly distributed size."""

    size = 2

    def __init__(self, place: Place, estimator: PairEstimator) -> None:
        super().__init__(place)
        self.estimator = estimator
        self.least = estimator.least(self.players)
        self.believed = estimator.believed(self.players)

    def masks(self, queries: Sequence[int]) -> np.ndarray:
        pairs = sorted({query // 2 for query in queries})
        sets = dict(zip(pairs, paired_sets(self.place.stream, pairs, self.players), strict=True))
        return np.stack([sets[query // 2] ^ bool(query % 2) for query in queries])

    def fit(self, scores: Float[np.ndarray, " n"]) -> Fit:
        change_of(scores[0], scores[1])
        masks = self.masks(range(0, len(scores), 2))
        halves = (scores[::2] - scores[1::2]) / 2
        known = np.isfinite(halves)
        return self.estimator.shapley(np.where(masks, 1.0, -1.0)[known], halves[known], self.place)


def change_of(full: float, none: float) -> float:
    """The number that Shapley values divide."""
    if not math.isfinite(full - none):
        raise ModelError(
            "Shapley values divide the change from the baseline to the input, but the model has no score for one of "
            "the two. Take another baseline."
        )
    return float(full - none)


def shapley_card(name: str, title: str, reference: str, budget: int | Until) -> MethodCard:
    """What the methods of this family claim alike."""
    return MethodCard(
        name=name,
        title=title,
        scope=Scope.LOCAL,
        stage=Stage.POST_HOC,
        applicability=Applicability.MODEL_AGNOSTIC,
        needs=Needs.SCORES,
        cost=Cost(forward=most(budget)),
        reference=reference,
        unit="score",
        per=Per.SEGMENT,
        channels="sum",
        sampled=True,
        caveats=("the baseline decides what absent means", "absent segments make inputs that no model was trained on"),
    )


def paired_sets(stream: Key, pairs: Sequence[int], players: int) -> np.ndarray:
    """The first set of each pair, (m, S) bool: pair 0 is the full set; sizes of the others run through 1 .. S-1 as
    evenly as a golden-ratio sequence does, so that any number of pairs has about as many sets of each size.
    """
    sets = np.ones((len(pairs), players), dtype=bool)
    start = uniform(stream, 0, 1)[0]
    for row, pair in enumerate(pairs):
        if pair:
            size = 1 + int((start + pair * _GOLDEN) % 1 * (players - 1))
            numbers = uniform(stream, pair, players)
            sets[row] = numbers < np.partition(numbers, size)[size]
    return sets


@cache
def _weights(players: int) -> np.ndarray:
    """|S|! (n - |S| - 1)! / n! for each size."""
    return np.array([1 / (players * math.comb(players - 1, size)) for size in range(players)])

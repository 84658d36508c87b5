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

from pellucid.core.queries import Fit
from pellucid.core.random import Key, uniform
from pellucid.core.recipe import Value
from pellucid.errors import ModelError
from pellucid.explainers._queried import Masked, Place

__all__ = ["MOST_EXACT", "Game", "PairEstimator", "exact_values", "exactly"]

MOST_EXACT = 20
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


class Game(Masked):
    """Pairs of sets, the full and the empty one first, then sets of uniformly distributed size; or all sets there are,
    in the order of binary numbers, if they are not more than the budget allows.
    """

    def __init__(self, place: Place, estimator: PairEstimator, calls: int) -> None:
        super().__init__(place)
        self.estimator = estimator
        self.exact = exactly(self.players, calls // self.width)
        self.size = 1 if self.exact else 2
        self.end = 2**self.players if self.exact else None
        self.least = 1 if self.exact else estimator.least(self.players)
        self.believed = 1 if self.exact else estimator.believed(self.players)

    def masks(self, queries: Sequence[int]) -> np.ndarray:
        if self.exact:
            return np.asarray(np.asarray(queries)[:, None] >> np.arange(self.players) & 1 == 1)
        pairs = sorted({query // 2 for query in queries})
        sets = dict(zip(pairs, paired_sets(self.place.stream, pairs, self.players), strict=True))
        return np.stack([sets[query // 2] ^ bool(query % 2) for query in queries])

    def fit(self, scores: Float[np.ndarray, " n"]) -> Fit:
        if self.exact:
            return exact_values(scores, self.players)
        masks = self.masks(range(0, len(scores), 2))
        halves = (scores[::2] - scores[1::2]) / 2
        known = np.isfinite(halves)
        if not known[0]:
            raise ModelError(
                "Shapley values divide the change from the baseline to the input, but the model has no score for one "
                "of the two. Take another baseline."
            )
        return self.estimator.shapley(np.where(masks, 1.0, -1.0)[known], halves[known], self.place)


def exactly(players: int, calls: int) -> bool:
    """Whether all sets of the players can be asked about with so many calls."""
    return players <= MOST_EXACT and 2**players <= calls


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
            sets[row] = numbers < np.partition(numbers, size)[size] if size < players else True
    return sets


def exact_values(scores: Float[np.ndarray, " n"], players: int) -> Fit:
    """The values of a game of which every set's score is known, in the order of binary numbers."""
    if not np.isfinite(scores).all():
        raise ModelError(
            f"Exact Shapley values need the scores of all {len(scores)} sets, but the model failed on "
            f"{int((~np.isfinite(scores)).sum())} of them. Take another baseline."
        )
    values = np.empty(players)
    weights = _weights(players)
    sets = np.arange(len(scores))
    sizes = np.bitwise_count(sets)
    for player in range(players):
        without = sets[sets >> player & 1 == 0]
        values[player] = weights[sizes[without]] @ (scores[without | 1 << player] - scores[without])
    return Fit(
        values, np.zeros(players), change=float(scores[-1] - scores[0]), notes={"segments": float(players)}, exact=True
    )


@cache
def _weights(players: int) -> np.ndarray:
    """|S|! (n - |S| - 1)! / n! for each size."""
    return np.array([1 / (players * math.comb(players - 1, size)) for size in range(players)])

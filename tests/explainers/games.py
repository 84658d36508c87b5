"""Games of segments whose Shapley values are known, as prediction functions of tables."""

import itertools
import math

import numpy as np

import pellucid as pl


def brute_force(value, players: int) -> np.ndarray:
    """Shapley values by the definition, from a function of a tuple of the players that are present."""
    phi = np.zeros(players)
    for player in range(players):
        others = [p for p in range(players) if p != player]
        for size in range(players):
            weight = 1 / (players * math.comb(players - 1, size))
            for subset in itertools.combinations(others, size):
                phi[player] += weight * (value(tuple(sorted((*subset, player)))) - value(subset))
    return phi


def random_game(players: int, seed: int) -> np.ndarray:
    """A value for every set, in the order of binary numbers; nothing for the empty set."""
    values = np.random.default_rng(seed).normal(size=2**players)
    values[0] = 0
    return values


def as_model(game: np.ndarray, **settings) -> pl.FunctionModel:
    """The game as a function of rows of zeros (absent) and ones (present)."""

    def function(rows: np.ndarray) -> np.ndarray:
        return game[(rows > 0.5) @ (1 << np.arange(rows.shape[1]))]

    return pl.FunctionModel(function, output="regression", **settings)


def quadratic(players: int, seed: int = 0):
    """A model of pairs and triples, c'm + m'Qm + a product of three, and its Shapley values for present players 1."""
    rng = np.random.default_rng(seed)
    linear, pairs = rng.normal(size=players), np.triu(rng.normal(size=(players, players)), 1)
    triples = [tuple(rng.choice(players, 3, replace=False)) for _ in range(players)]
    strengths = rng.normal(size=len(triples))

    def function(rows: np.ndarray) -> np.ndarray:
        found = rows @ linear + np.einsum("bi,ij,bj->b", rows, pairs, rows)
        for triple, strength in zip(triples, strengths, strict=True):
            found = found + strength * rows[:, list(triple)].prod(1)
        return found

    # Whoever works together shares alike.
    phi = linear + pairs.sum(0) / 2 + pairs.sum(1) / 2
    for triple, strength in zip(triples, strengths, strict=True):
        phi[list(triple)] += strength / 3
    return pl.FunctionModel(function, output="regression"), phi

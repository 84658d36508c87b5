"""Questions answered by formulas of their masks or shifts, without a model: thousands of runs take seconds."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from scipy.stats import t as student

from pellucid.core.queries import Answers, Fit, Question, Run
from pellucid.core.random import Key
from pellucid.core.stopping import Until
from pellucid.explainers._queried import Place


def place_of(players: int, seed: int = 0) -> Place:
    """A table with a segment for each column."""
    x = torch.ones(1, players, dtype=torch.float64)
    return Place(x, torch.zeros_like(x), torch.arange(players), Key.named("toy").stream(seed))


@dataclass(eq=False)
class Formula(Answers):
    """Answers that `score` makes of the numbers of the queries."""

    score: Callable[[range], np.ndarray] = field(default=lambda queries: np.zeros(len(queries)))

    def upto(self, count: int) -> np.ndarray:
        self.known = self.score(range(count))
        return self.known


def stopped(question: Question, score: Callable[[range], np.ndarray], until: Until) -> Run:
    """The run until its stop."""
    answers = Formula(None, question, None, None, score=score)
    run = Run(answers, until, 0, "a toy")
    run.take()
    return run


def covered(fit: Fit, truth: np.ndarray, count: int) -> np.ndarray:
    """Whether each value's 95 % interval holds the truth, from `count` independent draws."""
    assert fit.variance is not None
    return abs(fit.values - truth) <= student.ppf(0.975, count - 1) * np.sqrt(fit.variance)

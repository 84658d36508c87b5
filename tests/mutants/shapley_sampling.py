"""Deliberate bugs in Shapley sampling."""

from tests.mutants.mutant import Mutant

TESTS = ("tests/explainers/test_shapley_sampling.py",)
_FILE = "explainers/shapley_sampling.py"

MUTANTS: list[Mutant] = [
    Mutant(
        "the second order of a pair is the first again",
        _FILE,
        "return (ranks < first[:, None]) ^ back[:, None]",
        "return ranks < np.where(back, asked % self.size - self.players, first)[:, None]",
        TESTS,
    ),
    Mutant(
        "what the reverse adds is given to the order's segments",
        _FILE,
        "np.take_along_axis(back, count - 1 - ranks, 1)",
        "np.take_along_axis(back, ranks, 1)",
        TESTS,
    ),
    Mutant(
        "orders that are sorted once: where a segment comes is who comes there",
        _FILE,
        "return numbers.argsort(1).argsort(1)",
        "return numbers.argsort(1).argsort(1) if len(numbers) < 2 else numbers.argsort(1)",
        TESTS,
    ),
    Mutant(
        "all pairs are the first",
        _FILE,
        "uniform(self.place.stream, draw, self.players)",
        "uniform(self.place.stream, 0, self.players)",
        TESTS,
    ),
    Mutant(
        "the spread of pairs in place of their mean's",
        _FILE,
        "each.var(0, ddof=1) / len(each) if",
        "each.var(0, ddof=1) if",
        TESTS,
    ),
    Mutant(
        "a variance about the sample's own mean",
        _FILE,
        "each.var(0, ddof=1) / len(each) if",
        "each.var(0) / len(each) if",
        TESTS,
    ),
    Mutant(
        "both orders count as draws of their own",
        _FILE,
        "each.var(0, ddof=1) / len(each) if",
        "each.var(0, ddof=1) / (2 * len(each)) if",
        TESTS,
    ),
    Mutant(
        "pairs that met no score count as nothing added",
        _FILE,
        "each = self._added(draws)\n",
        "each = np.nan_to_num(self._added(draws))\n",
        TESTS,
    ),
    Mutant(
        "stopping by the spread of two pairs",
        _FILE,
        "believed = 12",
        "believed = 2",
        TESTS,
    ),
]

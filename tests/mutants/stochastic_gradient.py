"""Deliberate bugs in the stochastic gradient."""

from tests.mutants.mutant import Mutant

TESTS = ("tests/explainers/test_stochastic_gradient.py",)
_FILE = "explainers/stochastic_gradient.py"

MUTANTS: list[Mutant] = [
    Mutant(
        "differences that are not halved",
        _FILE,
        "halves = (scores[::2] - scores[1::2]) / 2",
        "halves = scores[::2] - scores[1::2]",
        TESTS,
    ),
    Mutant(
        "differences that are summed",
        _FILE,
        "halves = (scores[::2] - scores[1::2]) / 2",
        "halves = (scores[::2] + scores[1::2]) / 2",
        TESTS,
    ),
    Mutant(
        "divided by the variance of the noise",
        _FILE,
        "self.estimator.terms(z, halves[known]) / self.level",
        "self.estimator.terms(z, halves[known]) / self.level**2",
        TESTS,
    ),
    Mutant(
        "not divided by the noise",
        _FILE,
        "self.estimator.terms(z, halves[known]) / self.level",
        "self.estimator.terms(z, halves[known])",
        TESTS,
    ),
    Mutant(
        "each pair in its own regression",
        _FILE,
        "left = (y - z @ whole) / (1 - leverage)",
        "left = y - z @ whole",
        TESTS,
    ),
    Mutant(
        "the regression alone",
        _FILE,
        "return np.asarray(whole + (z - z @ inverse) * left[:, None])",
        "return np.asarray(whole - (z @ inverse) * left[:, None])",
        TESTS,
    ),
    Mutant(
        "the regression forgets to leave the pair out of what is added",
        _FILE,
        "return np.asarray(whole + (z - z @ inverse) * left[:, None])",
        "return np.asarray(whole + z * left[:, None])",
        TESTS,
    ),
    Mutant(
        "both copies on one side of the input",
        _FILE,
        "np.where(np.asarray(queries) % 2, -1, 1)",
        "np.where(np.asarray(queries) % 2, 1, 1)",
        TESTS,
    ),
    Mutant(
        "each query has a shift of its own",
        _FILE,
        "self.shifts([query // 2 for query in queries])",
        "self.shifts(list(queries))",
        TESTS,
    ),
    Mutant(
        "held places have the noise of the first segment",
        _FILE,
        "torch.cat([shifts, torch.zeros_like(shifts[:, :1])], 1)",
        "torch.cat([shifts, shifts[:, :1]], 1)",
        TESTS,
    ),
    Mutant(
        "the parts of an input have one range",
        _FILE,
        "self.noise.spread(x, model.packing).expand_as(x)[None]",
        "self.noise.spread(x).expand_as(x)[None]",
        TESTS,
    ),
    Mutant(
        "the spread of the terms in place of their mean's",
        _FILE,
        "terms.var(0, ddof=1) / len(terms) if",
        "terms.var(0, ddof=1) if",
        TESTS,
    ),
    Mutant(
        "both copies count as draws of their own",
        _FILE,
        "terms.var(0, ddof=1) / len(terms) if",
        "terms.var(0, ddof=1) / (2 * len(terms)) if",
        TESTS,
    ),
    Mutant(
        "lost pairs leave the shifts of others behind",
        _FILE,
        "z = self.shifts(range(len(halves)))[known]",
        "z = self.shifts(range(int(known.sum())))",
        TESTS,
    ),
    Mutant("any number of segments", _FILE, "if place.players > _MOST:", "if place.players > 10 * _MOST:", TESTS),
    Mutant("stopping by the spread of few pairs", _FILE, "believed = 48", "believed = 1", TESTS),
]

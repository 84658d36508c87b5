"""Deliberate bugs in RISE, its masks and its estimators."""

from tests.mutants.mutant import Mutant

RISE = "tests/explainers/test_rise.py"
DEBIASED = "tests/explainers/test_debiased_rise.py"
PROCESS = "tests/explainers/test_rise_process.py"

_MASKS = "explainers/_rise.py"
_RISE = "explainers/rise.py"
_DEBIASED = "explainers/debiased_rise.py"
_PROCESS = "explainers/_rise_process.py"

MUTANTS: list[Mutant] = [
    Mutant("methods without segments that have patches", "explainers/_queried.py", "view(sides).expand(len(x), *sides)", "view(sides).expand(len(x), *sides) // 2", (RISE,)),
    Mutant("masks without a shift", _MASKS, "(each[:, cells:] * counts).astype", "(each[:, cells:] * 0).astype", (RISE,)),
    Mutant(
        "shifts that never reach the last place of a cell",
        _MASKS,
        "np.array([len(matrices) for",
        "np.array([max(len(matrices) - 1, 1) for",
        (RISE,),
    ),
    Mutant("grids enlarged to as many cells", _MASKS, "large = (cells + 1) * cell\n", "large = (cells + 1) * cell - 1\n", (RISE,)),
    Mutant("enlargement between corners", _MASKS, "(np.arange(large) + 0.5) * cells / large - 0.5", "np.arange(large) * (cells - 1) / (large - 1)", (RISE,)),
    Mutant("bits that keep the rest", _MASKS, "each[:, :cells] < p", "each[:, :cells] >= p", (RISE,)),
    Mutant("one shift for both axes", _MASKS, "matrices[self.shifts[:, axis]]", "matrices[self.shifts[:, 0] % len(matrices)]", (RISE,)),
    Mutant("masks of the place in the batch", _MASKS, "uniform(stream, index, cells + axes) for index in indices", "uniform(stream, index, cells + axes) for index in range(len(indices))", (RISE,)),
    Mutant("what is kept is absent", _MASKS, "torch.lerp(self.place.away(copies), self.place.x,", "torch.lerp(self.place.x, self.place.away(copies),", (RISE,)),
    Mutant("one baseline of a background", _MASKS, "self.place.away(copies)", "self.place.absent[:1]", (RISE,)),
    Mutant("both of a pair are the mask", _MASKS, "masks.bits ^ (each % self.size == 1)", "masks.bits ^ (each % self.size == 2)", (DEBIASED,)),
    Mutant("masks that differ in their shift are one", _MASKS, "bit.tobytes() + shift.tobytes()", "bit.tobytes() + b'' * len(shift)", (RISE,)),
    Mutant("the logit is scored", _MASKS, "each = (Probability(one.index) if isinstance(one, ClassScore)", "each = (one if isinstance(one, ClassScore)", (RISE,)),
    Mutant("scores stay with the masks that are left", _MASKS, "grid, self.p)[known]", "grid, self.p)[: int(known.sum())]", (RISE, DEBIASED)),
    Mutant("only the first chunk is squared", _MASKS, "second += weights[part, 0] ** 2", "second = weights[part, 0] ** 2", (RISE,)),
    Mutant("squared scores of the last column", _MASKS, "weights[part, 0] ** 2 @", "weights[part, -1] ** 2 @", (RISE, DEBIASED)),
    Mutant("spread over n", _MASKS, "0, None) / (n - 1))", "0, None) / n)", (RISE,)),
    Mutant("tables are signals", _MASKS, "if len(features) < 2:", "if len(features) < 1:", (RISE,)),
    Mutant("not divided by p", _RISE, "return Fit(total / (n * p),", "return Fit(total / n,", (RISE,)),
    Mutant("rise is debiased", _RISE, "return Fit(total / (n * p),", "return Fit(first / (n * p),", (RISE,)),
    Mutant("the crossed term is left out", _RISE, "second + 2 * p * crossed + p**2", "second + p**2", (RISE,)),
    Mutant("the constant is signal", _RISE, "independent, contrast=contrast)", "independent, contrast=None)", (RISE,)),
    Mutant("centred over n", _DEBIASED, "first / ((n - 1) * p), spread", "first / (n * p), spread", (DEBIASED,)),
    Mutant("nothing is centred", _DEBIASED, "scores[:, 0] - scores[:, 0].mean()", "scores[:, 0] - 0 * scores[:, 0].mean()", (DEBIASED,)),
    Mutant("the masks' own mean is forgotten", _DEBIASED, "middle = ones / n ", "middle = 0 * ones ", (DEBIASED,)),
    Mutant("the error of a mean for that of a covariance", _DEBIASED, "* n / ((n - 1) * (n - 2) ** 2)", "/ (n * (n - 1))", (DEBIASED,)),
    Mutant("whole differences", _DEBIASED, "(scores[:, 0] - scores[:, 1]) / 2", "(scores[:, 0] - scores[:, 1])", (DEBIASED,)),
    Mutant("pairs are added", _DEBIASED, "(scores[:, 0] - scores[:, 1]) / 2", "(scores[:, 0] + scores[:, 1]) / 2", (DEBIASED,)),
    Mutant("pairs for any p", _DEBIASED, "if estimator.size == 2 and self.p != 0.5:", "if estimator.size == 3 and self.p != 0.5:", (DEBIASED,)),
    Mutant("variance not in units of the score", _DEBIASED, "of_mean(first, second, n) / p**2", "of_mean(first, second, n) / p", (DEBIASED,)),
    Mutant("the process does not see the shift", _PROCESS, "(pool @ matrices)[masks.shifts[:, axis]]", "(pool @ matrices)[0 * masks.shifts[:, axis]]", (PROCESS,)),
    Mutant("masks are zero and one", _PROCESS, "np.where(masks.bits, 1.0, -1.0)", "np.where(masks.bits, 1.0, 0.0)", (PROCESS,)),
    Mutant("the prior for the posterior", _PROCESS, "left = prior - explained.T @ process.inverse @ explained", "left = prior - 0 * explained.T @ process.inverse @ explained", (PROCESS,)),
    Mutant("smoothed once", _PROCESS, "[smoother.T @ smoother for smoother in each]", "[smoother.T for smoother in each]", (PROCESS,)),
    Mutant("axes exchanged in the variance", _PROCESS, "[axis + half * axes for axis in range(axes) for half in (0, 1)]", "[axis + half * axes for axis in reversed(range(axes)) for half in (0, 1)]", (PROCESS,)),
    Mutant("links of one shift", _PROCESS, '"auc,arc->ur", matrices, pool @ matrices) / len(matrices)', '"auc,arc->ur", matrices[:1], pool @ matrices[:1])', (PROCESS,)),
    Mutant("nodes of a cell", _PROCESS, "min(2 * cells, side) + 1", "min(cells, side) + 1", (PROCESS,)),
]  # fmt: skip

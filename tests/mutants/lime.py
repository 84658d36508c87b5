"""Deliberate bugs in LIME."""

from tests.mutants.mutant import Mutant

LIME = ("tests/explainers/test_lime.py",)

_FILE = "explainers/lime.py"

MUTANTS: list[Mutant] = [
    Mutant("LIME's first mask is drawn, too", _FILE, "drawn | (np.asarray(queries)[:, None] == 0)", "drawn", LIME),
    Mutant("a kernel of half the exponent", _FILE, "np.exp(-((distance / width) ** 2))", "np.exp(-((distance / width) ** 2) / 2)", LIME),
    Mutant("a kernel of the share that is absent", _FILE, "1 - np.sqrt(masks.mean(1))", "1 - masks.mean(1)", LIME),
    Mutant("a surrogate without a constant", _FILE, "masks - share @ masks, scores - share @ scores", "masks * 1.0, scores", LIME),
    Mutant("a surrogate without weights", _FILE, "weights = kernel(masks, width)", "weights = np.ones(len(masks))", LIME),
    Mutant("no penalty", _FILE, "np.where(told, sizes + penalty, np.inf)", "np.where(told, sizes, np.inf)", LIME),
    Mutant("lime's kernel without the root", _FILE, "wide = width * math.sqrt(2)", "wide = width", LIME),
    Mutant("residuals are not enlarged by their leverage", _FILE, "residual / np.clip(1 - leverage, 1e-6, None)", "residual", LIME),
    Mutant("leverage without the constant's", _FILE, "inverse, x) + share", "inverse, x)", LIME),
    Mutant("the whole input counts as a draw", _FILE, "[int(whole) :]", "[0:]", LIME),
    Mutant("the penalty's pull counts as noise", _FILE, "((influence - influence.mean(0)) ** 2)", "(influence**2)", LIME),
    Mutant("what masks cannot tell apart has an error", _FILE, "))] = np.nan", "))] = 0", LIME),
    Mutant("masks that come again show an error", _FILE, "distinct = len(np.unique(masks, axis=0))", "distinct = len(masks)", LIME),
    Mutant("a single segment has never masks enough", _FILE, "min(len(values) + 2, 2.0 ** len(values))", "len(values) + 2", LIME),
    Mutant("R2 of the fit's own masks tells that it follows", _FILE, "if foretold < _FOLLOWS", "if r2 < -_FOLLOWS", LIME),
    Mutant("masks without a score are scored zero", _FILE, "known = np.isfinite(scores)", "scores = np.nan_to_num(scores)\n        known = np.isfinite(scores)", LIME),
    Mutant("one mean for all segments of a picture", _FILE, "numbers = labels.masked_fill(held, int(labels.max()) + 1)", "numbers = 0 * labels", LIME),
    Mutant("what is held is filled, too", _FILE, "torch.where(held, flat, means)", "means", LIME),
]  # fmt: skip

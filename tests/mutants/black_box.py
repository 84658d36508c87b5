"""Deliberate bugs of the engine of black-box methods, of segments, of KernelSHAP and its estimators."""

from tests.mutants.mutant import Mutant

__all__ = ["MUTANTS"]

QUERIES = "tests/core/test_queries.py"
SEGMENTS = "tests/core/test_segments.py"
QUERIED = "tests/explainers/test_queried.py"
SHAPLEY = "tests/explainers/test_shapley.py"
KERNEL = "tests/explainers/test_kernel_shap.py"
PROCESS = "tests/explainers/test_shapley_process.py"
ODD = "tests/explainers/test_odd_process.py"
PAIRED = "tests/explainers/test_paired_gp.py"
PIXELS = "tests/modalities/image/test_superpixels.py"
CERTAIN = "tests/modalities/image/test_uncertainty.py"


def queries(name: str, before: str, after: str, tests: str = QUERIES) -> Mutant:
    return Mutant(name, "core/queries.py", before, after, (tests,))


def segments(name: str, before: str, after: str) -> Mutant:
    return Mutant(name, "core/segments.py", before, after, (SEGMENTS,))


def queried(name: str, before: str, after: str) -> Mutant:
    return Mutant(name, "explainers/_queried.py", before, after, (QUERIED,))


def shapley(name: str, before: str, after: str) -> Mutant:
    return Mutant(name, "explainers/_shapley.py", before, after, (SHAPLEY, KERNEL))


def kernel(name: str, before: str, after: str) -> Mutant:
    return Mutant(name, "explainers/kernel_shap.py", before, after, (KERNEL,))


def process(name: str, before: str, after: str) -> Mutant:
    return Mutant(name, "explainers/_shapley_process.py", before, after, (PROCESS,))


def odd(name: str, before: str, after: str) -> Mutant:
    return Mutant(name, "explainers/_odd_process.py", before, after, (ODD,))


MUTANTS = [
    queries("queries that ask the same asked each time", "query if codes is None else self._firsts.setdefault(codes[query - start], query)", "query"),
    queries("answers of repeated queries in the wrong place", "scores = scores[same[:count]]", "scores = scores"),
    queries("the first copy in place of the mean of copies", ".reshape(whole, width).mean(1)", ".reshape(whole, width)[:, 0]"),
    queries("what was answered before an interruption lost", "self.known = scores[:reached]", "self.known = scores[:start]"),
    queries("an interrupted chunk counted as answered", "done += len(part)\n                self.tell", "done += len(part) + 1\n                self.tell"),
    queries("one broken row spoils its batch", "if len(rows) == 1:", "if len(rows) >= 1:"),
    queries("infinite scores taken as they are", "scores = np.where(broken, np.nan, scores)", "pass"),
    queries("a model that mostly fails explained all the same", "if 2 * lost > len(self.known):", "if lost > len(self.known):"),
    queries("networks asked row by row after a failure", "if not self.model.fails_by_row:", "if False:"),
    queries("what was spent not taken from the budget", ") - spent, 0)", "), 0)"),
    queries("a query taken for one call", "self.unit = question.size * question.width", "self.unit = question.size"),
    queries("noise counted as signal", "power = float((self.values**2).mean()) - noise", "power = float((self.values**2).mean())"),
    queries("signal found in noise", "power > 2 * spread else math.inf", "power > 0 else math.inf"),
    queries("shared errors taken for many", "(self.independent or self.values.size)", "self.values.size"),
    queries("further calls forgotten", "if self.until.further:", "if False:"),
    queries("pieces of unequal size", "return -(-left // -(-left // most))", "return most"),
    segments("a place in the cell of its edge", "(torch.arange(side) * 2 + 1) * count", "(torch.arange(side) * 2) * count"),
    segments("more cells than places", "count = min(most, side)", "count = most"),
    segments("columns numbered as if there were no groups", "len(self.groups) + column - sum(grouped < column for grouped in self._grouped)", "len(self.groups) + column"),
    segments("parts that share their segments", "torch.where(wide == HELD, HELD, wide + count)", "wide"),
    segments("whole numbers that are segments", "torch.full((len(x), part[0].numel()), HELD", "torch.full((len(x), part[0].numel()), 0"),
    queried("held places taken away", "torch.ones_like(present[:, :1])], 1)  # HELD", "torch.zeros_like(present[:, :1])], 1)  # HELD"),
    queried("held places that have a score", "torch.where(labels == HELD, 0.0, torch.from_numpy(values)[labels])", "torch.from_numpy(values)[labels]"),
    queried("present and absent the other way round", "torch.where(kept, self.place.x,", "torch.where(~kept, self.place.x,"),
    queried("one row of a background for all", "else self.absent[list(copies)]", "else self.absent[:1]"),
    queried("answers of another order taken over", "bool(call.earlier.state[\"exact\"][i]) == (question.end is not None)", "True"),
    queried("an interrupted run that names its whole budget", "return replace(self, budget=calls)", "return self"),
    queried("an extension that begins anew", "return replace(self, budget=self.budget + more)", "return replace(self, budget=more)"),

    Mutant("the seed ignored", "explainers/_queried.py", "return key.stream(self.seed)", "return key.stream(0)", (KERNEL,)),
    queried("left-out answers not told", "if not lost:", "if True:"),
    shapley("weights of sizes off by one", "1 / (players * math.comb(players - 1, size))", "1 / (players * math.comb(players, size))"),
    shapley("sets in another order than numbers", ">> np.arange(self.players) & 1 == 1", ">> np.arange(self.players)[::-1] & 1 == 1"),
    shapley("both of a pair the same set", "sets[query // 2] ^ bool(query % 2)", "sets[query // 2]"),
    shapley("differences in place of half of them", "halves = (scores[::2] - scores[1::2]) / 2", "halves = scores[::2] - scores[1::2]"),
    shapley("sets of one size", "(start + pair * _GOLDEN) % 1 * (players - 1)", "0.5 * (players - 1)"),
    shapley("all pairs of one draw", "numbers = uniform(stream, pair, players)", "numbers = uniform(stream, 1, players)"),
    kernel("no weights", "weights = 1 / (sizes * (players - sizes))", "weights = np.ones(len(sizes))"),
    kernel("the sum not kept", "Fit(phi + change / players, variance", "Fit(phi, variance"),
    kernel("half of the values", "x, y = signs[1:], 2 * halves[1:]", "x, y = signs[1:], halves[1:]"),
    kernel("leverage left out", "np.sqrt(np.clip(1 - leverage, 1e-6, None))", "np.ones_like(leverage)"),
    kernel("variance for standard error", "np.where(told, (moved**2).sum(0), np.nan)", "np.where(told, np.abs(moved).sum(0), np.nan)"),
    process("values of one half of the odd part", "values = 2 * (1 - ratio) * np.where", "values = (1 - ratio) * np.where"),
    process("quadrature of too few points", "leggauss(m // 2 + 1)", "leggauss(2)"),
    process("present players taken for absent ones", "np.where(present, up[:, None], -down[:, None])", "np.where(present, down[:, None], -up[:, None])"),
    process("even kernels", "- np.exp(-self.decay * np.arange(size, -1, -1))", "+ np.exp(-self.decay * np.arange(size, -1, -1))"),
    process("linear values of half their size", "return 2 * self.covariance @ signs.T", "return self.covariance @ signs.T"),
    process("the prior's variance in place of the posterior's", "prior - np.einsum(", "prior - 0 * np.einsum("),
    process("values that do not divide the change", "phi += (change - phi.sum()) / len(phi)", "pass"),
    Mutant("errors of a process that found nothing", "explainers/_odd_process.py", "if r2 >= _LEAST_R2 or", "if True or", (PROCESS, "tests/explainers/test_rise_process.py")),
    Mutant("a blank map without an error", "explainers/_odd_process.py", "or not fit.variance.any():", "or False:", (PROCESS, "tests/explainers/test_rise_process.py")),
    shapley("a change without the empty set", "return float(full - none)", "return float(full)"),
    shapley("exact by the calls of a single baseline", "2**place.players * len(place.absent) <= calls", "2**place.players <= calls"),
    queries("a look that is not the last taken for it", "last=draws >= self.most", "last=True"),
    queries("calls for an error as if it fell with their number", "((error / goal) ** 2 - 1)", "((error / goal) - 1)"),
    Mutant("neighbours among the columns of a table", "explainers/paired_gp.py", "table = place.x.ndim == 2", "table = False", ("tests/explainers/test_paired_gp.py",)),
    Mutant("a signal taken for a table", "explainers/paired_gp.py", "table = place.x.ndim == 2", "table = place.labels.ndim == 1", ("tests/explainers/test_paired_gp.py",)),
    Mutant("maps of masks by a process stopped at once", "explainers/_rise.py", "self.believed = estimator.size, estimator.least_draws, estimator.believed_draws", "self.believed = estimator.size, estimator.least_draws, 1", ("tests/explainers/test_paired_gp.py",)),
    Mutant("rounding taken for a rest", "explainers/_queried.py", "return rest if abs(rest) > rounding else 0.0", "return rest", (SHAPLEY,)),
    kernel("no error of what fits in any case", "< min(players, 2 ** (players - 1) - 1)", "< 0"),
    kernel("a pair and its reverse taken for two", "np.unique(x * x[:, :1], axis=0)", "np.unique(x, axis=0)"),
    Mutant("repeats of a budget untold", "core/queries.py", "f\", {again} of them on copies that had been asked about\" if again", "\"\" if again", (QUERIED,)),
    queries("one failing row makes all others go alone", "if self._failed == failed:  # there were", "if True:  # there were"),
    queries("where many rows fail many are asked at once", "else max(len(part) // 2, 1)", "else grown"),
    queries("too many rows at once are tried again and again", "self.at_once = min(self.at_once, half)", "pass"),
    process("segments that touch across what is held", "(one != other) & (one != HELD) & (other != HELD)", "(one != other)"),
    odd("the logarithm of the determinant forgotten", "value = 0.5 * float(y @ alpha) + half_logdet", "value = 0.5 * float(y @ alpha)"),
    odd("a gradient of the other sign", "slope = inverse - np.outer(alpha, alpha)", "slope = inverse + np.outer(alpha, alpha)"),
    odd("weights without their unit", "weights * power * np.array(scales)", "weights * np.array(scales)"),
    odd("an inverse without its unit", "inverse = inverse / power", "pass"),
    odd("residuals in place of left-out ones", "left = alpha / diagonal", "left = alpha"),
    Mutant("the colours of a normalised picture", "modalities/image/superpixels.py", "if preprocess is None:", "if True:", (PIXELS,)),
    Mutant("segments in several pieces", "modalities/image/superpixels.py", "whole = label(found, background=-1, connectivity=1)", "whole = found", (PIXELS,)),
    Mutant("one-sided tests of segments", "modalities/image/uncertainty.py", "2 * student.sf(ratio, free)", "student.sf(ratio, free)", (CERTAIN,)),
    Mutant("exact segments never certain", "modalities/image/uncertainty.py", "np.where(values == 0, 0.0, np.inf)", "np.zeros_like(values)", (CERTAIN,)),
    Mutant("gradients in micro-batches of passes without", "core/explainer.py", "quiet.forward_only = scores_only =", "quiet.forward_only = scores_only = True or", ("tests/core/test_abstract_model.py",)),
    Mutant("scores in micro-batches of gradients", "core/abstract_model.py", "_BYTES * (1 + self.forward_only)", "_BYTES", ("tests/core/test_abstract_model.py",)),
    Mutant("the diagnosis not counted against the budget", "core/explainer.py", "spent = (quiet.passes.forward + probed.forward) // len(given)", "spent = quiet.passes.forward // len(given)", (QUERIED,)),
    Mutant("chance in a model not noticed", "core/diagnosis.py", "if apart_by > _REPEATED", "if apart_by > 1e9 + _REPEATED", (QUERIED,)),
    Mutant("probabilities believed", "core/diagnosis.py", "if outputs.isfinite().all() and (abs(total - 1) > _SUM_SLACK", "if False and (abs(total - 1) > _SUM_SLACK", (QUERIED,)),
    Mutant("a base's interruption taken for the wrapper's", "core/explainer.py", "if stop.method is self:", "if True:", (QUERIED,)),
    Mutant("scores of segments in the order of places", "core/attribution.py", "found[labels[inside].long()] = flat[inside]", "found[:] = flat[: len(found)]", (QUERIED, "tests/explainers/test_paired_gp.py")),
    queries("no difference yet taken for certainty", "0.0 if self.exact or self.values.any() else math.inf", "0.0"),
    queries("stops by errors that nobody believes", "max(self.answers.question.least, self.answers.question.believed)", "self.answers.question.least"),
    queries("repetitions not told as done", "self.tell((count - start - len(fresh)) * width)", "self.tell(0)"),
    queries("the least forgotten beyond the most", "max(budget.at_most, budget.at_least)", "budget.at_most"),
    queried("one input without an error takes it from all", "any(fit.variance is not None for fit in fits)", "all(fit.variance is not None for fit in fits)"),
    queried("notes of the first input alone", "for fit in fits for name in fit.notes)", "for fit in fits[:1] for name in fit.notes)"),
    kernel("segments that cannot be told apart told", "variance = np.where(told, (moved**2).sum(0), np.nan)", "variance = (moved**2).sum(0)"),
    process("weights of the first pairs for the first pairs only", "if len(halves) > _WEIGHED and process.weights.any():", "if False:"),
]  # fmt: skip
"""Each named for what it gets wrong."""

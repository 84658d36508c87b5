"""Deliberate bugs in the smallest change."""

from tests.mutants.mutant import Mutant

TESTS = ("tests/explainers/test_smallest_change.py",)
_FILE = "explainers/_removals.py"

MUTANTS: list[Mutant] = [
    Mutant(
        "the segment goes that does least",
        _FILE,
        "key=lambda pair: (math.isnan(pair[1]), pair[1])",
        "key=lambda pair: (math.isnan(pair[1]), -pair[1])",
        TESTS,
    ),
    Mutant(
        "sets without a score come first",
        _FILE,
        "key=lambda pair: (math.isnan(pair[1]), pair[1])",
        "key=lambda pair: (not math.isnan(pair[1]), pair[1])",
        TESTS,
    ),
    Mutant(
        "the candidates of the last step as they are numbered",
        _FILE,
        "order = [j for j, _ in ranked[1:]]",
        "order = sorted(j for j, _ in ranked[1:])",
        TESTS,
    ),
    Mutant(
        "nothing comes back",
        _FILE,
        "self._ask([best - {j} for j in sorted(best)])",
        "self._ask([])",
        TESTS,
    ),
    Mutant(
        "segments come back in one round only",
        _FILE,
        "        while (found := self._best()) != best and found:\n",
        "        if (found := self._best()) != best and found:\n",
        TESTS,
    ),
    Mutant(
        "no smaller set is tried",
        _FILE,
        "for size in range(1, len(best)):",
        "for size in range(1, 1):",
        TESTS,
    ),
    Mutant(
        "a tie has flipped",
        _FILE,
        "in self._asked(margins) if margin < 0]",
        "in self._asked(margins) if margin <= 0]",
        TESTS,
    ),
    Mutant(
        "the set that flips by most, however large",
        _FILE,
        "found = [(len(each), margin, i)",
        "found = [(0, margin, i)",
        TESTS,
    ),
    Mutant(
        "smallest of all without the sets of one less",
        _FILE,
        "for k in range(size)) - tried",
        "for k in range(size - 1)) - tried",
        TESTS,
    ),
    Mutant(
        "needed without a look",
        _FILE,
        "return _NEEDED if all(best - {j} in tried for j in best) else _FLIPS",
        "return _NEEDED",
        TESTS,
    ),
    Mutant(
        "sets without a score count as tried",
        _FILE,
        "strict=True)) if np.isfinite(pair[1])]",
        "strict=True))]",
        TESTS,
    ),
    Mutant(
        "the lead over the lowest of the others",
        _FILE,
        "logits[:, self.rivals(outputs.shape[1])].amax(1)",
        "logits[:, self.rivals(outputs.shape[1])].amin(1)",
        TESTS,
    ),
    Mutant(
        "the class leads itself",
        _FILE,
        "return [k for k in range(count) if k != self.index] if",
        "return list(range(count)) if",
        TESTS,
    ),
    Mutant(
        "probabilities are taken for logits",
        _FILE,
        "return outputs if kind is OutputKind.LOGITS else",
        "return outputs if kind else",
        TESTS,
    ),
    Mutant(
        "the call for the set once more is not kept back",
        _FILE,
        "if len(self.sets) >= self.most - 1:",
        "if len(self.sets) >= self.most:",
        TESTS,
    ),
    Mutant(
        "sets are asked about again",
        _FILE,
        "known = {each: i for i, each in enumerate(self.sets)}",
        "known = {}",
        TESTS,
    ),
    Mutant(
        "what was asked after the interruption counts",
        _FILE,
        "        if self.exhaustive_from is not None:  # which",
        "        if self.exhaustive_from is None:  # which",
        TESTS,
    ),
    Mutant(
        "what takes over is the first of the others",
        _FILE,
        "rival = rivals[int(outputs[0, rivals].argmax())]",
        "rival = rivals[0]",
        TESTS,
    ),
    Mutant("segments that stay are taken away", _FILE, "row[list(self.sets[query])] = False",
           "row[[j for j in range(self.players) if j not in self.sets[query]]] = False", TESTS),
    Mutant(
        "the class of Margin against all others",
        "explainers/smallest_change.py",
        "Lead(*target.classes)",
        "Lead(target.classes[0])",
        TESTS,
    ),
]  # fmt: skip

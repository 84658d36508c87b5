"""Deliberate bugs in Sobol indices."""

from tests.mutants.mutant import Mutant

SOBOL = ("tests/explainers/test_sobol_indices.py",)

_FILE = "explainers/sobol_indices.py"

MUTANTS: list[Mutant] = [
    Mutant("first-order masks: B with a number of A", _FILE, "np.where(changed, second, first)", "np.where(changed ^ (part[:, None] > 1), second, first)", SOBOL),
    Mutant("B is A", _FILE, "second = pairs[at, : self.players], pairs[at, self.players :]", "second = pairs[at, : self.players], pairs[at, : self.players]", SOBOL),
    Mutant("the neighbour's number is changed", _FILE, "part[:, None] - 2 == ", "part[:, None] - 1 == ", SOBOL),
    Mutant("masks are there or not", _FILE, "kept = torch.from_numpy(self.masks(queries)).to(x)", "kept = torch.from_numpy(self.masks(queries)).round().to(x)", SOBOL),
    Mutant("segments fade the other way", _FILE, "torch.lerp(self.place.away(copies), x, ", "torch.lerp(x, self.place.away(copies), ", SOBOL),
    Mutant("what is held fades", _FILE, "torch.ones_like(kept[:, :1])", "torch.zeros_like(kept[:, :1])", SOBOL),
    Mutant("every copy has the first baseline", _FILE, "self.place.away(copies)", "self.place.absent[:1]", SOBOL),
    Mutant("squares are not halved", _FILE, "(first - changed) ** 2 / 2", "(first - changed) ** 2", SOBOL),
    Mutant("the variance is of A alone", _FILE, "ones, sums, squares = known.sum(1), ends.sum(1), (ends**2).sum(1)", "ones, sums, squares = known[:, 0], ends[:, 0], ends[:, 0] ** 2", SOBOL),
    Mutant("the variance is divided by the count", _FILE, "np.maximum(count - 1, 1)", "np.maximum(count, 1)", SOBOL),
    Mutant("the error takes the variance as known", _FILE, "(count - pairs) / without[:, None]", "(count - pairs) / variance", SOBOL),
    Mutant("the error is that of one draw", _FILE, "spread = (draws - 1) / draws * ", "spread = draws * ", SOBOL),
    Mutant("rounding is shared out", _FILE, "(_ROUNDING * largest) ** 2", "0", SOBOL),
    Mutant("a comparison without a score counts as none", _FILE, "total, count = squares.sum(0), pairs.sum(0)", "total, count = squares.sum(0), np.full(pairs.shape[1], len(pairs))", SOBOL),
    Mutant("shares are drawn with a sign", _FILE, "sampled=True,", 'sampled=True,\n            channels="sum",', SOBOL),
]  # fmt: skip

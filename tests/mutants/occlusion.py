"""Deliberate bugs in occlusion by segments and by sliding windows."""

from tests.mutants.mutant import Mutant

TESTS = ("tests/explainers/test_occlusion.py",)
_FILE = "explainers/occlusion.py"

MUTANTS: list[Mutant] = [
    Mutant("falls with the other sign", _FILE, "scores[0] - scores[1:]", "scores[1:] - scores[0]", TESTS),
    Mutant(
        "each segment's neighbour is taken away",
        _FILE,
        "!= np.arange(1, self.players + 1)",
        "!= np.roll(np.arange(1, self.players + 1), 1)",
        TESTS,
    ),
    Mutant(
        "only one segment is there",
        _FILE,
        "np.asarray(queries)[:, None] != np.arange(1, self.players + 1)",
        "(np.asarray(queries)[:, None] == np.arange(1, self.players + 1)) | (np.asarray(queries)[:, None] == 0)",
        TESTS,
    ),
    Mutant(
        "windows are summed and not averaged",
        _FILE,
        "np.divide(total, count, out",
        "np.divide(total, np.sign(count), out",
        TESTS,
    ),
    Mutant(
        "windows without a score count in the mean",
        _FILE,
        "                total[window] += fall\n                count[window] += 1\n",
        "                total[window] += fall\n            count[window] += 1\n",
        TESTS,
    ),
    Mutant(
        "the last window stays inside",
        _FILE,
        "slice(step * stride, min(step * stride + window, side))",
        "slice(max(min(step * stride, side - window), 0), min(step * stride + window, side))",
        TESTS,
    ),
    Mutant(
        "no window reaches over the edge",
        _FILE,
        "steps = -(-max(side - window, 0) // stride)",
        "steps = max(side - window, 0) // stride",
        TESTS,
    ),
    Mutant(
        "windows at every place",
        _FILE,
        "slice(step * stride, min(step * stride + window, side)) for step in range(steps + 1)",
        "slice(step, min(step + window, side)) for step in range(side - window + 1)",
        TESTS,
    ),
    Mutant(
        "the stride of the other axis",
        _FILE,
        "zip(self.places, windows, strides, strict=True)",
        "zip(self.places, windows, strides[::-1], strict=True)",
        TESTS,
    ),
    Mutant(
        "the window of the other axis",
        _FILE,
        "zip(self.places, windows, strides, strict=True)",
        "zip(self.places, windows[::-1], strides, strict=True)",
        TESTS,
    ),
    Mutant(
        "windows are taken for the ones after",
        _FILE,
        "row[self.windows[query - 1]] = False",
        "row[self.windows[query % len(self.windows)]] = False",
        TESTS,
    ),
    Mutant("gaps between windows", _FILE, "stride > window for window", "stride > 2 * window for window", TESTS),
    Mutant(
        "no score is no fall, and nothing is said",
        _FILE,
        "if len(lost) else ()\n        return Fit(np.nan_to_num(falls)",
        "if False else ()\n        return Fit(np.nan_to_num(falls)",
        TESTS,
    ),
]

"""How exact pellucid's black-box methods are for a number of model calls, and how fast, beside shap, shapiq and Captum.

It runs for about half an hour on two cores and writes its tables into benchmarks/README.md; `--quick` (2 minutes)
prints the parts on ResNet-20. Errors do not depend on the machine: all estimators ask the same function of masks
(games.py). What is timed takes turns, in processes of its own (maskers.py).
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cache
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from arena import Contest, Process, Worker, fastest_batch, processor, report
from games import (
    LITE0,
    PEERS,
    RESNET,
    SHAP,
    SHAP_PLAIN,
    SHAPIQ,
    Estimate,
    Game,
    Halves,
    RandomGame,
    apart,
    lime_halves,
    pellucid_kernel,
    photos_of,
    rise_halves,
    shapiq_exact,
    shapley_halves,
    squared,
)
from maskers import Contender

import pellucid as pl

CALLS = 1024
GRID = (128, round(CALLS / 5), round(CALLS / 3), 512, CALLS)
OURS = "pellucid PairedGP"
FEWER = {SHAP: 5.0, SHAPIQ: 3.0}
"""How many times fewer calls PairedGP shall need for the error of each, as they come."""

REFERENCE = {LITE0: (1000, 1500), RESNET: (2000, 5000)}
"""Calls of the process and of each half."""

ESTIMATORS = {"pellucid Regression": pl.Regression(), OURS: pl.PairedGP()}
RISE = {"plain": pl.Plain(), "centred": pl.Centred(), "pairs": pl.Pairs(), "PairedGP": pl.PairedGP()}
RISE_FEWER = {"plain": 10.0, "centred": 2.5}
RISE_CALLS = (512, CALLS)
LIME_CALLS, LIME_TIMES = 1000, 5


def say(what: str) -> None:
    """Progress, to whoever waits."""
    print(f"{time.monotonic() - _STARTED:5.0f} s  {what}", file=sys.stderr, flush=True)


_STARTED = time.monotonic()


# --- errors ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Size:
    """How much is measured: photos of each network, and seeds of each photo."""

    photos: int = 10
    seeds: int = 2
    rise_half: int = 3000


@dataclass(frozen=True)
class Found:
    """The true squared error of one estimate, and its ratio to the predicted one, NaN where none was shown."""

    error: float
    calls: int
    ratio: float

    @classmethod
    def of(cls, estimate: Estimate, halves: Halves) -> "Found":
        """Of an estimate, against two halves of a reference."""
        error = squared(estimate.values, halves)
        if estimate.variance is None:
            return cls(error, estimate.calls, np.nan)
        return cls(error, estimate.calls, error * float(halves[0] @ halves[1]) / float(estimate.variance.sum()))


@dataclass(frozen=True)
class Errors:
    """Of each estimator with so many calls, what was found on each photo with each seed, in the same order."""

    apart: Sequence[float]
    found: Mapping[tuple[str, int], list[Found]]
    photos: int

    def of(self, name: str, calls: int) -> np.ndarray:
        """The squared errors."""
        return np.array([one.error for one in self.found[name, calls]])

    def asked(self, name: str, calls: int) -> int:
        """How many calls were made."""
        return max(one.calls for one in self.found[name, calls])

    @property
    def words(self) -> str:
        """What was measured."""
        each = len(next(iter(self.found.values())))
        return (
            f"{self.photos} photos, seeds for each: {each // self.photos}; the halves of the reference lie "
            f"{np.median(self.apart):.3f} ({min(self.apart):.3f}-{max(self.apart):.3f}) of their power apart"
        )


@cache
def shapley_errors(case: str, size: Size) -> Errors:
    """Of Shapley values of 49 patches."""
    jobs = [(name, calls, pellucid_kernel(estimator)) for name, estimator in ESTIMATORS.items()
            for calls in (GRID if name == OURS else (CALLS,))]  # fmt: skip
    jobs += [(name, CALLS, find) for name, find in PEERS.items()]
    found: dict[tuple[str, int], list[Found]] = {(name, calls): [] for name, calls, _ in jobs}
    distances, photos = [], photos_of(case)[: size.photos]
    for i, photo in enumerate(photos):
        game = Game(photo)
        halves = shapley_halves(game, *REFERENCE[case])
        distances.append(apart(halves))
        say(f"Shapley values, {case}, {photo.name}: reference")
        for seed in range(size.seeds):
            for name, calls, find in jobs:
                found[name, calls].append(Found.of(find(game, calls, 100 * i + seed), halves))
            say(f"Shapley values, {case}, {photo.name}, seed {seed}")
    return Errors(distances, found, len(photos))


@cache
def rise_errors(case: str, size: Size) -> Errors:
    """Of maps of random masks."""
    goals = {round(CALLS / fewer) for fewer in RISE_FEWER.values()}
    jobs = [(name, calls) for name in RISE for calls in sorted({*RISE_CALLS, *(goals if name == "PairedGP" else ())})]
    found: dict[tuple[str, int], list[Found]] = {job: [] for job in jobs}
    distances, photos = [], photos_of(case)[: size.photos]
    for photo in photos:
        game = RandomGame(photo)
        halves = rise_halves(game, size.rise_half)
        distances.append(apart(halves))
        say(f"RISE, {case}, {photo.name}: reference")
        for seed in range(size.seeds):
            for name, calls in jobs:
                method = pl.DebiasedRISE(estimator=RISE[name], budget=calls, seed=seed)
                found[name, calls].append(Found.of(game.explained(method), halves))
            say(f"RISE, {case}, {photo.name}, seed {seed}")
    return Errors(distances, found, len(photos))


@cache
def lime_errors(case: str, size: Size) -> Errors:
    """Of LIME's coefficients of 49 patches."""
    found: list[Found] = []
    distances, photos = [], photos_of(case)[: size.photos]
    for i, photo in enumerate(photos):
        game = Game(photo)
        halves = lime_halves(game, LIME_CALLS, LIME_TIMES)
        distances.append(apart(halves))
        found += [Found.of(game.explained(pl.LIME, LIME_CALLS, 100 * i + s), halves) for s in range(size.seeds)]
        say(f"LIME, {case}, {photo.name}")
    return Errors(distances, {("LIME", LIME_CALLS): found}, len(photos))


# --- intervals ---------------------------------------------------------------------------------------------------


def interval(of: Callable[[np.ndarray], float], count: int) -> tuple[float, float]:
    """95 % of what a number becomes where the estimates are drawn anew, with replacement (bootstrap)."""
    generator = np.random.default_rng(0)
    values = [of(generator.integers(0, count, count)) for _ in range(1000)]
    low, high = np.quantile(values, (0.025, 0.975))
    return float(low), float(high)


def median(values: np.ndarray) -> str:
    """The median, with its interval."""
    low, high = interval(lambda chosen: float(np.median(values[chosen])), len(values))
    return f"{np.median(values):.3f} ({low:.3f}-{high:.3f})"


def fewer(errors: Errors, name: str, peer: str, grid: Sequence[int]) -> str:
    """How many times fewer calls `name` needs for the peer's median error, its own between two numbers of calls being
    a power of them; with its interval.
    """
    curves = np.stack([errors.of(name, calls) for calls in grid])
    goals, calls = errors.of(peer, CALLS), np.log(grid)

    def times(chosen: np.ndarray) -> float:
        logs = np.log(np.maximum(np.median(curves[:, chosen], axis=1), 1e-9))
        falling = np.minimum.accumulate(logs) - 1e-9 * np.arange(len(grid))
        goal = np.log(max(float(np.median(goals[chosen])), 1e-9))
        return CALLS / float(np.exp(np.interp(goal, falling[::-1], calls[::-1])))

    everyone = np.arange(len(goals))
    found, (low, high) = times(everyone), interval(times, len(goals))
    over = "over " if found >= CALLS / grid[0] * (1 - 1e-9) else ""
    return f"{over}{found:.1f} ({low:.1f}-{high:.1f})"


def verdict(bar: str, fine: bool) -> str:
    """The bar, and that it was missed if it was."""
    return bar if fine else f"{bar} **missed**"


def goal_row(errors: Errors, name: str, peer: str, bar: float, grid: Sequence[int], *, binding: bool = True) -> str:
    """Whether `name` reaches the peer's error with so many times fewer calls, as it must where that is `binding`."""
    calls = round(CALLS / bar)
    own, goal = (float(np.median(errors.of(who, n))) for who, n in ((name, calls), (peer, CALLS)))
    cells = [f"{peer}, {errors.asked(peer, CALLS)} calls", f"{goal:.3f}", f"{own:.3f} with {errors.asked(name, calls)}",
             fewer(errors, name, peer, grid), verdict(f"{bar:.1f}", own <= goal) if binding else ""]  # fmt: skip
    return f"| {' | '.join(cells)} |"


# --- the tables --------------------------------------------------------------------------------------------------


def calls_table(cases: Sequence[str], size: Size) -> Iterator[str]:
    """Errors of Shapley values, and how many calls they take."""
    yield f"\n{', '.join(f'{name} {version(name)}' for name in ('shap', 'shapiq'))}"
    for case in cases:
        errors = shapley_errors(case, size)
        yield f"\n**{case}**, 49 patches, {errors.words}\n"
        yield "| | calls made | squared error, median (95 % interval) |\n|---|--:|--:|"
        for name, calls in errors.found:
            yield f"| {name} | {errors.asked(name, calls)} | {median(errors.of(name, calls))} |"
        yield f"\n| for the error of | its error | {OURS}'s | times fewer calls | bar |\n|---|--:|--:|--:|--:|"
        yield goal_row(errors, OURS, SHAP, FEWER[SHAP], GRID)
        yield goal_row(errors, OURS, SHAP_PLAIN, FEWER[SHAP], GRID, binding=False)
        yield goal_row(errors, OURS, SHAPIQ, FEWER[SHAPIQ], GRID)


def rise_table(case: str, size: Size) -> Iterator[str]:
    """Errors of debiased RISE, and how many calls they take."""
    errors = rise_errors(case, size)
    yield f"\n**{case}**, {errors.words}\n"
    yield "| debiased RISE, by | calls made | squared error, median (95 % interval) |\n|---|--:|--:|"
    for name, calls in errors.found:
        yield f"| {name} | {errors.asked(name, calls)} | {median(errors.of(name, calls))} |"
    grid = sorted(calls for name, calls in errors.found if name == "PairedGP")
    yield "\n| for the error of | its error | PairedGP's | times fewer calls | bar |\n|---|--:|--:|--:|--:|"
    for peer, bar in RISE_FEWER.items():
        yield goal_row(errors, "PairedGP", peer, bar, grid, binding=case == LITE0)


def predicted_table(cases: Sequence[str], rise: str, size: Size) -> Iterator[str]:
    """Whether errors are as large as they are said to be."""
    rows = []
    for case in cases:
        errors = shapley_errors(case, size)
        wanted = [(name, calls) for name, calls in errors.found if name in ESTIMATORS and calls in (GRID[1], CALLS)]
        rows += [(f"Shapley values by {name}", case, calls, errors.found[name, calls]) for name, calls in wanted]
    masked = rise_errors(rise, size)
    rows += [(f"RISE by {name}", rise, calls, found) for (name, calls), found in masked.found.items()
             if calls == CALLS or name == "PairedGP"]  # fmt: skip
    lime = lime_errors(RESNET, size)
    [(_, surrogate)] = lime.found.items()
    rows.append(("LIME", RESNET, LIME_CALLS, surrogate))
    yield "\n| | network | calls | true / predicted squared error, median (range) | no error shown | bar |"
    yield "|---|---|--:|--:|--:|--:|"
    for name, case, calls, found in rows:
        ratios = np.array([one.ratio for one in found])
        known = ratios[np.isfinite(ratios)]
        said = f"{np.median(known):.2f} ({known.min():.2f}-{known.max():.2f})" if len(known) else ""
        fine = not len(known) or 0.7 <= np.median(known) <= 1.4
        yield f"| {name} | {case} | {calls} | {said} | {len(ratios) - len(known)} | {verdict('0.7-1.4', fine)} |"
    coefficients = median(lime.of("LIME", LIME_CALLS))
    yield f"\nLIME's coefficients with {LIME_CALLS} calls, {RESNET}: squared error {coefficients}. {lime.words}."


def exact_table(grids: Sequence[tuple[int, int]]) -> Iterator[str]:
    """All sets there are, by pellucid and by shapiq."""
    yield f"\n| {RESNET}, shapiq {version('shapiq')} | sets | largest difference / largest value | bar |"
    yield "|---|--:|--:|--:|"
    photo = photos_of(RESNET)[0]
    for sides in grids:
        game = Game(photo, sides)
        expected = shapiq_exact(game)
        found = game.explained(pl.KernelSHAP, 2**game.players + 2, 0)
        assert found.variance is not None  # noqa: S101  # zeros
        difference = float(abs(found.values - expected).max() / abs(expected).max())
        fine = difference <= 1e-6 and not found.variance.any()
        say(f"exact, {game.players} players")
        yield f"| {game.players} players | {2**game.players} | {difference:.1e} | {verdict('1e-06', fine)} |"


# --- time --------------------------------------------------------------------------------------------------------

BATCHES = (4, 8, 16, 32)
TRIAL = 128  # calls of the runs that find the best batch, and of those that warm up


def contest(contenders: Mapping[str, Contender], rounds: int, folder: Path) -> tuple[Contest, dict[str, np.ndarray]]:
    """Each contender in a process of its own, warm; and the map of each one's first run."""
    with ExitStack() as stack:
        workers = {}
        for i, (name, one) in enumerate(contenders.items()):
            process = stack.enter_context(Process(type(one).__module__))
            process.run(replace(one, calls=min(TRIAL, one.calls)))
            workers[name] = Worker(one, process, folder / f"{i}.npy", warm=True)
            say(f"{one.case}, {one.method}, {name}: {workers[name].first:.3g} s")
        turns = Contest(workers).run(rounds - 1)
    return turns, {name: np.load(folder / f"{i}.npy") for i, name in enumerate(contenders)}


def best(contender: Contender) -> Contender:
    """The contender with its fastest batch."""
    with Process(type(contender).__module__) as process:
        trial = replace(contender, calls=min(TRIAL, contender.calls))
        batch = fastest_batch(process, trial, BATCHES)
    say(f"{contender.case}, {contender.method}, {contender.who}: batch {batch}")
    return replace(contender, batch=batch)


def wall_table(case: str, rounds: int, calls: int) -> Iterator[str]:
    """How long equal calls take."""
    versions = ", ".join(f"{name} {version(name)}" for name in ("captum", "shap"))
    yield f"\n{processor()}, {torch.get_num_threads()} threads, torch {torch.__version__}, {versions}"
    captum, shap = (Contender(case, "kernel-shap", who, calls) for who in ("Captum", "shap"))
    games = [captum, shap, best(captum), best(shap)]
    ablation = Contender(case, "occlusion", "Captum")
    singles = [ablation, best(ablation)]
    kernel = {name: Contender(case, name, "pellucid", calls) for name in ("regression", "paired-gp")}
    yield from _times(f"KernelSHAP, {calls} calls", games, kernel, rounds)
    yield from _times("Occlusion, 49 patches", singles, {"occlusion": Contender(case, "occlusion", "pellucid")}, rounds)


def _times(what: str, peers: Sequence[Contender], own: Mapping[str, Contender], rounds: int) -> Iterator[str]:
    named = {f"{one.who}, batch {one.batch}" if one.batch else f"{one.who} default": one for one in peers}
    with tempfile.TemporaryDirectory() as folder:
        turns, maps = contest({**own, **named}, rounds, Path(folder))
    first = next(iter(own.values()))
    yield f"\n**{what}, {first.case}**\n"
    heads = " | ".join(f"times pellucid's, {name}" for name in own)
    yield f"| | seconds | {heads} | bar | maps |\n|---|--:|{'--:|' * len(own)}--:|--:|"
    for name in own:
        yield f"| pellucid, {name} | {turns.median(name):.3g} |{' |' * len(own)} | |"
    for name, peer in named.items():
        low, middle, high = np.quantile([turns.ratios(name, one) for one in own], (0.25, 0.5, 0.75), axis=1)
        ratios = [f"{m:.2f} ({a:.2f}-{b:.2f})" for a, m, b in zip(low, middle, high, strict=True)]
        alike = min(float(np.corrcoef(maps[name].ravel(), maps[one].ravel())[0, 1]) for one in own)
        bar = verdict("2.0", min(middle) >= 2) if first.case == LITE0 and peer.batch is None else ""
        cells = [name, f"{turns.median(name):.3g}", *ratios, bar, f"{alike:.3f}"]
        yield f"| {' | '.join(cells)} |"


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="ResNet-20, one seed; nothing is written")
    options = parser.parse_args()
    quick: bool = options.quick
    cases, masked = ((RESNET,), RESNET) if quick else ((LITE0, RESNET), LITE0)
    size = Size(photos=2, seeds=1, rise_half=2000) if quick else Size()
    grids, rounds = ([(3, 4)], 3) if quick else ([(3, 4), (4, 4)], 5)
    parts = {
        "black-box calls": lambda: calls_table(cases, size),
        "black-box rise": lambda: rise_table(masked, size),
        "black-box predicted": lambda: predicted_table(cases, masked, size),
        "black-box exact": lambda: exact_table(grids),
        "black-box wall": lambda: wall_table(masked, rounds, 512),
    }
    report(parts, write=not quick)


if __name__ == "__main__":
    main()

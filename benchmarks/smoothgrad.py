"""How fast and how exact pellucid's SmoothGrad is beside Captum, PAIR saliency, Zennit and a bare loop.

It runs for under 15 minutes on two cores and writes its tables into benchmarks/README.md; `--quick` (3 minutes) prints
the most important. Every contender has a process of its own; they take turns within each round, and what is told of two
is the median of the rounds' ratios with the least and the largest.
"""

import argparse
import copy
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from arena import Contest, Worker, best_batch, processor, report, spread
from contenders import ESTIMATORS, LEVEL, Contender, N, case_of, photos
from PIL import Image
from torch import Tensor, nn

import pellucid as pl
from pellucid.core.heap import kept_heap

LITE0 = "EfficientNet-Lite0"
NETWORKS = (LITE0, "ResNet-50", "ResNet-56")
BATCHES = (4, 8, 12, 50)
GRID = (4, 8, 16, 32, 48, 56, 64)
SHOWN = (8, 16, 48)


def equal_samples(names: Sequence[str], rounds: int) -> Iterator[str]:
    """Seconds, ratios and memory with n = 50."""
    for name in names:
        batch, half_batch = (best_batch(Contender(name, "captum", bf16=b), BATCHES) for b in (False, True))
        contenders = {
            "pellucid": Contender(name, "pellucid"),
            "pellucid, bf16": Contender(name, "pellucid", bf16=True),
            "Captum default": Contender(name, "captum"),
            f"Captum, batch {batch}": Contender(name, "captum", batch=batch),
            f"Captum, batch {half_batch}, its caller with channels_last + bf16": Contender(
                name, "captum", batch=half_batch, bf16=True
            ),
            "PAIR saliency": Contender(name, "pair"),
            "Zennit": Contender(name, "zennit"),
        }
        contest = Contest.between(contenders).run(rounds if name != "ResNet-50" else max(rounds - 1, 2))
        side = 32 if name == "ResNet-56" else 224
        yield f"\n**{name}**, {side} x {side}, n = {N}\n"
        yield "| | seconds | times pellucid's | times pellucid's in bf16 | first call, s | peak MiB added |"
        yield "|---|--:|--:|--:|--:|--:|"
        for contender, worker in contest.workers.items():
            ratios = f"{contest.ratio(contender, 'pellucid')} | {contest.ratio(contender, 'pellucid, bf16')}"
            first = f"{worker.first:.2f} | {worker.peak:.0f}"
            yield f"| {contender} | {contest.median(contender):.2f} | {ratios} | {first} |"


def memory() -> Iterator[str]:
    """Peaks at the same micro-batch."""
    yield "\n| n = 50 | micro-batch | pellucid, MiB | Captum, MiB |\n|---|--:|--:|--:|"
    for name, batch in ((LITE0, 4), (LITE0, 24), ("ResNet-50", 4)):
        peaks = []
        for who in ("pellucid", "captum"):
            with Worker(Contender(name, who, batch=batch)) as worker:
                peaks.append(f"{worker.peak:.0f}")
        yield f"| {name} | {batch} | {' | '.join(peaks)} |"


def relative(map_: Tensor, halves: tuple[Tensor, Tensor]) -> float:
    """Squared error over the signal's power, free of the reference's own noise: mean (m - a)(m - b) / mean ab."""
    a, b = halves
    return float(((map_ - a) * (map_ - b)).mean() / (a * b).mean())


def equal_error(
    indices: Sequence[int], reference: int, grid: Sequence[int], goals: Sequence[int], rounds: int
) -> Iterator[str]:
    """How long pellucid's estimators take to the error of the plain mean with so many samples."""
    model = pl.TorchModel(pl.load("efficientnet-lite0").net)
    inputs = photos(indices)
    targets = [int(model.predict(x).outputs.argmax()) for x in inputs]

    halves = []
    for x, target in zip(inputs, targets, strict=True):
        both = [pl.SmoothGrad(n_samples=reference // 2, noise_level=LEVEL, seed=seed) for seed in (1000, 1001)]
        a, b = (explain(model, x, target).scores[0].double() for explain in both)
        halves.append((a, b))

    def error(n: int, estimator: pl.Estimator, model: pl.TorchModel = model) -> tuple[float, str]:
        """Median squared error over the photos, and the median of true over estimated error if most have one."""
        explain = pl.SmoothGrad(n_samples=n, noise_level=LEVEL, estimator=estimator)
        found = [explain(model, x, t) for x, t in zip(inputs, targets, strict=True)]
        true = np.array([relative(a.scores[0].double(), h) for a, h in zip(found, halves, strict=True)])
        estimated = np.array([float(a.estimated_error) for a in found])
        calibration = float(np.median(np.sqrt(np.maximum(true, 0)) / estimated))
        return float(np.median(true)), f"{calibration:.2f}" if calibration > 0 else "no signal yet"

    plain = {n: error(n, pl.Mean())[0] for n in (*SHOWN, *goals)}
    quick = pl.TorchModel(model.net, precision="bfloat16")
    best, *others = [name for name in ESTIMATORS if name != "pellucid"]
    columns = [best, f"{best}, bf16", *others]
    yield f"\n{len(inputs)} photos, reference of 2 x {reference // 2} samples of other seeds. Squared error, median;"
    yield "in brackets true / estimated error, median:\n"
    yield "| n | plain mean | " + " | ".join(columns) + " |\n|--:|--:|" + "--:|" * len(columns)
    curves: dict[bool, dict[int, float]] = {False: {}, True: {}}
    for n in grid:
        cells = []
        for bf16, curve in curves.items():
            curve[n], calibration = error(n, ESTIMATORS[best], quick if bf16 else model)
            cells.append(f"{curve[n]:.3f} ({calibration})")
        cells += ["{:.3f} ({})".format(*error(n, ESTIMATORS[o])) if n in SHOWN else "" for o in others]
        yield f"| {n} | {f'{plain[n]:.2f}' if n in plain else ''} | " + " | ".join(cells) + " |"
    for n in goals:
        yield f"| {n} | {plain[n]:.3f} |" + " |" * len(columns)

    batch = best_batch(Contender(LITE0, "captum"), BATCHES)
    peers = {"default": Contender(LITE0, "captum"), "best": Contender(LITE0, "captum", batch=batch)}
    for n in goals:
        yield f"\nTo the error of the plain mean with n = {n}, squared {plain[n]:.3f}:\n"
        yield f"| {best} | samples | seconds | Captum default takes | Captum, batch {batch}, takes |"
        yield "|---|--:|--:|--:|--:|"
        needed = {b: min((m for m in c if c[m] <= plain[n]), default=None) for b, c in curves.items()}
        ours = {b: Contender(LITE0, best, n=m, bf16=b) for b, m in needed.items() if m is not None}
        contest = Contest.between({**{str(b): one for b, one in ours.items()}, **peers}).run(rounds)
        for bf16, one in ours.items():
            # By default Captum holds all copies at once, and 300 do not fit: it is called n / 50 times.
            cells = [f"{spread(n / N * contest.ratios(peer, str(bf16)))} times as long" for peer in peers]
            name = "bfloat16" if bf16 else "float32"
            yield f"| {name} | {one.n} | {contest.median(str(bf16)):.2f} | {' | '.join(cells)} |"


def engine(names: Sequence[str], rounds: int) -> Iterator[str]:
    """The whole call against the bare loop."""
    yield "\n| n = 50 | bare loop, s | pellucid, s | pellucid over the bare loop |\n|---|--:|--:|--:|"
    for name in names:
        batches = (4, 6, 8) if name == LITE0 else (24, 50)
        loops = {f"loop {b}": Contender(name, "bare loop", batch=b) for b in batches}
        contest = Contest.between({**loops, "pellucid": Contender(name, "pellucid")}).run(rounds)
        best = min(loops, key=contest.median)
        row = f"| {name}, {best.replace('loop', 'the loop with batch')} | {contest.median(best):.3f}"
        yield f"{row} | {contest.median('pellucid'):.3f} | {contest.ratio('pellucid', best)} |"


def growth(rounds: int) -> Iterator[str]:
    """How the cost grows with samples, batch and image size."""
    case = case_of(LITE0)
    model = pl.TorchModel(case.net)
    yield "\n| | seconds | a sample, ms |\n|---|--:|--:|"

    def row(what: str, x: Tensor, n: int) -> str:
        seconds = _fastest(lambda: pl.SmoothGrad(n_samples=n)(model, x, case.target), rounds)
        return f"| {what} | {seconds:.2f} | {1000 * seconds / (n * len(x)):.1f} |"

    for n in (1, 10, 50, 150):
        yield row(f"n = {n}", case.x, n)
    for count in (2, 8):
        yield row(f"{count} photos, n = 16", torch.cat(photos(range(count))), 16)
    for side in (112, 320):
        yield row(f"{side} x {side}, n = 16", torch.nn.functional.interpolate(case.x, side), 16)


def _fastest(run: Callable[[], object], rounds: int) -> float:
    run()
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def command_line(rounds: int) -> Iterator[str]:
    """`pellucid --help`, and from photo to picture, against `import torch` and the bare loop."""
    program = str(Path(sys.executable).parent / "pellucid")
    words = {
        "help": [program, "--help"],
        "torch": [sys.executable, "-c", "import torch"],
        "plain": [program, "explain", "cat.png", "--force", "--samples", "50", "--estimator", "mean"],
        "photo": [program, "explain", "cat.png", "--force"],
    }
    seconds: dict[str, list[float]] = {name: [] for name in (*words, "bare")}
    with tempfile.TemporaryDirectory() as folder, Worker(Contender(LITE0, "bare loop", batch=4)) as bare:
        from skimage import data

        Image.fromarray(data.chelsea()).save(Path(folder) / "cat.png")
        for turn in range(rounds + 1):
            for name, command in words.items():
                start = time.perf_counter()
                subprocess.run(command, cwd=folder, check=True, capture_output=True)
                if turn:  # the first round fills the file system's cache
                    seconds[name].append(time.perf_counter() - start)
            if turn:
                seconds["bare"].append(bare.run())
    taken = {name: np.array(values) for name, values in seconds.items()}
    both = taken["torch"] + taken["bare"]
    yield "\n| | seconds | ratio |\n|---|--:|--:|"
    yield f"| `import torch` | {np.median(taken['torch']):.2f} | |"
    yield f"| `pellucid --help` | {np.median(taken['help']):.2f} | {spread(taken['help'] / taken['torch'])} of that |"
    for name, what in (("plain", "with --estimator mean"), ("photo", "by default")):
        ratio = f"{spread(taken[name] / both)} of `import torch` + bare loop"
        yield f"| photo to picture, n = 50, {what} | {np.median(taken[name]):.2f} | {ratio} |"


def machine(rounds: int) -> Iterator[str]:
    """What the processor convolves at most, and what share of it the networks reach."""
    from torch.utils.flop_counter import FlopCounterMode

    yield f"\n{processor()}, {torch.get_num_threads()} threads, torch {torch.__version__}\n"
    yield "| | GFLOP/s in float32 | in bfloat16 |\n|---|--:|--:|"
    x, layer = torch.randn(12, 256, 28, 28), nn.Conv2d(256, 256, 3, padding=1).requires_grad_(False)
    x, layer = x.contiguous(memory_format=torch.channels_last), layer.to(memory_format=torch.channels_last)
    work = 2 * 12 * 28 * 28 * 256 * 256 * 9
    peaks = []
    for dtype in (torch.float32, torch.bfloat16):
        image, convolution = x.to(dtype), copy.deepcopy(layer).to(dtype)
        with torch.no_grad(), kept_heap(torch.device("cpu")):
            run = lambda image=image, convolution=convolution: convolution(image)  # noqa: E731  # bound now
            peaks.append(work / _fastest(run, 40 * rounds) / 1e9)
    yield f"| one 3 x 3 convolution, 256 channels | {peaks[0]:.0f} | {peaks[1]:.0f} |"
    for name in (LITE0, "ResNet-50"):
        case = case_of(name)
        with FlopCounterMode(display=False) as counter:
            leaf = case.x.clone().requires_grad_()
            torch.autograd.grad(copy.deepcopy(case.net).requires_grad_(False)(leaf.clone())[:, 0].sum(), leaf)
        flops = counter.get_total_flops() * N
        contest = Contest.between({key: Contender(name, "pellucid", bf16=key == "half") for key in ("single", "half")})
        contest.run(rounds)
        rates = [flops / contest.median(key) / 1e9 for key in ("single", "half")]
        shares = [f"{rate:.0f} ({rate / best:.0%})" for rate, best in zip(rates, peaks, strict=True)]
        yield f"| {name}, n = {N}, the whole call | {' | '.join(shares)} |"


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer rounds and photos; nothing is written")
    options = parser.parse_args()
    rounds = 2 if options.quick else 4
    indices = range(10, 650, 220) if options.quick else range(10, 650, 54)  # none of them was used for tuning
    parts = {
        "machine": lambda: machine(2),
        "equal samples": lambda: equal_samples((LITE0,) if options.quick else NETWORKS, rounds),
        "memory": memory,
        "equal error": (lambda: equal_error(indices, 120, GRID[::2], (50,), 1))
        if options.quick
        else (lambda: equal_error(indices, 1000, GRID, (50, 300), rounds - 1)),
        "engine": lambda: engine((LITE0,) if options.quick else (LITE0, "ResNet-56"), rounds + 2),
        "growth": lambda: growth(3),
        "command line": lambda: command_line(rounds),
    }
    if options.quick:
        del parts["machine"], parts["memory"], parts["growth"], parts["command line"]
    report(parts, write=not options.quick)


if __name__ == "__main__":
    main()

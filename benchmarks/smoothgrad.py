"""SmoothGrad by pellucid, Captum, PAIR saliency and Zennit: the signed gradient, the same sigma, one machine.

`make bench` runs everything (under 15 minutes on two cores) and writes the tables into benchmarks/README.md; `--quick`
(3 minutes) prints them only. Contenders take turns within each round, and what is told of two is the median of the
rounds' ratios with the least and the largest. Peak memory is that of a process of its own for each contender.
"""

import argparse
import copy
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from networks import PHOTOS, cifar_pictures, cifar_resnet, let_torchvision_import, resnet50
from PIL import Image
from torch import Tensor, nn

import pellucid as pl
from pellucid.core.heap import kept_heap

README = Path(__file__).with_name("README.md")
LEVEL, N = 0.15, 50
CAPTUM_BATCHES = (2, 4, 8, 12, 24)
GRID = (4, 6, 8, 12, 16, 24, 30, 36, 42, 48, 54, 60, 72, 96)

Explain = Callable[[], Tensor]
"""One map of one input."""


@dataclass(frozen=True, eq=False)
class Case:
    """A network and one input, what is explained, and how the network is cut into a fair contest."""

    name: str
    net: nn.Module
    x: Tensor
    target: int

    @property
    def sigma(self) -> float:
        """The noise of every contender."""
        return LEVEL * float(self.x.max() - self.x.min())


# --- the contenders ----------------------------------------------------------------------------------------------


def pellucid(case: Case, n: int = N, estimator: pl.Estimator | None = None, **model: object) -> Explain:
    """Our own, with its defaults."""
    wrapped = pl.TorchModel(case.net, **model)  # type: ignore[arg-type]
    explain = pl.SmoothGrad(n_samples=n, noise_level=LEVEL, estimator=estimator or pl.Mean())
    return lambda: explain(wrapped, case.x, case.target).scores


def captum(case: Case, n: int = N, batch: int | None = None, *, bf16: bool = False) -> Explain:
    """Captum's NoiseTunnel over Saliency; with `bf16` its caller also uses channels_last and autocast."""
    from captum.attr import NoiseTunnel, Saliency

    net = copy.deepcopy(case.net).to(memory_format=torch.channels_last) if bf16 else case.net
    tunnel = NoiseTunnel(Saliency(net))
    x = case.x.contiguous(memory_format=torch.channels_last) if bf16 else case.x

    def run() -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
            return tunnel.attribute(
                x.clone(), target=case.target, abs=False, nt_type="smoothgrad", nt_samples=n,
                nt_samples_batch_size=batch, stdevs=case.sigma,
            )  # fmt: skip

    return run


def pair(case: Case, n: int = N) -> Explain:
    """PAIR's GradientSaliency.GetSmoothedMask, signed."""
    import saliency.core as saliency

    def call(images: np.ndarray, call_model_args: object, expected_keys: object) -> dict[str, np.ndarray]:
        x = torch.from_numpy(np.asarray(images, dtype=np.float32)).requires_grad_()
        [gradient] = torch.autograd.grad(case.net(x)[:, case.target].sum(), x)
        return {saliency.INPUT_OUTPUT_GRADIENTS: gradient.numpy()}

    image = case.x[0].numpy()
    method = saliency.GradientSaliency()
    return lambda: torch.from_numpy(
        method.GetSmoothedMask(image, call, stdev_spread=LEVEL, nsamples=n, magnitude=False)
    )


def zennit(case: Case, n: int = N) -> Explain:
    """Zennit's SmoothGrad."""
    let_torchvision_import()
    from zennit.attribution import SmoothGrad

    def run() -> Tensor:
        with SmoothGrad(noise_level=LEVEL, n_iter=n, model=case.net) as attributor:
            one_hot = torch.nn.functional.one_hot(torch.tensor([case.target]), case.net(case.x).shape[1]).float()
            return attributor(case.x.clone(), one_hot)[1]

    return run


def bare(case: Case, n: int = N, batch: int = 4) -> Explain:
    """The loop that anybody writes: randn, add, gradient, sum; frozen parameters and channels_last."""
    net = copy.deepcopy(case.net).to(memory_format=torch.channels_last).requires_grad_(False)
    generator = torch.Generator().manual_seed(0)

    def run() -> Tensor:
        total = torch.zeros_like(case.x[0])
        for start in range(0, n, batch):
            noise = torch.randn((min(batch, n - start), *case.x.shape[1:]), generator=generator)
            copies = (case.x + case.sigma * noise).contiguous(memory_format=torch.channels_last).requires_grad_()
            total += torch.autograd.grad(net(copies)[:, case.target].sum(), copies)[0].sum(0)
        return total / n

    return run


# --- measuring ---------------------------------------------------------------------------------------------------


@dataclass
class Times:
    """Seconds of each contender, one for each round."""

    seconds: dict[str, list[float]] = field(default_factory=dict)

    def median(self, name: str) -> float:
        """The median seconds of a contender."""
        return float(np.median(self.seconds[name]))

    def ratio(self, slower: str, faster: str) -> str:
        """How many times faster, median and range of the rounds' ratios."""
        ratios = np.array(self.seconds[slower]) / np.array(self.seconds[faster])
        return f"{np.median(ratios):.2f} ({ratios.min():.2f}-{ratios.max():.2f})"


def contest(contenders: dict[str, Explain], rounds: int, warm: bool = True) -> Times:
    """Each contender once a round, in turn; the order turns by one each round, so that none always follows the same."""
    times = Times({name: [] for name in contenders})
    if warm:
        for run in contenders.values():
            run()
    names = list(contenders)
    for turn in range(rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            start = time.perf_counter()
            contenders[name]()
            times.seconds[name].append(time.perf_counter() - start)
    return times


def best_batch(case: Case, *, bf16: bool) -> int:
    """Captum's fastest batch size on this machine."""
    found = contest({str(b): captum(case, 24, b, bf16=bf16) for b in CAPTUM_BATCHES}, 2)
    return int(min(found.seconds, key=found.median))


def peak(case: str, contender: str) -> float:
    """MiB that one run adds to the process, in a process of its own."""
    command = [sys.executable, __file__, "--peak", case, contender]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return float(json.loads(output.splitlines()[-1]))


def resident(key: str) -> int:
    """Bytes resident now (VmRSS) or at most so far (VmHWM)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key):
            return int(line.split()[1]) * 1024
    raise SystemExit("The peak of memory is read from /proc, which this system does not have.")


def case_of(name: str) -> Case:
    """The case of that name."""
    if name == "ResNet-56":
        net, x = cifar_resnet(56), cifar_pictures(1)
    elif name == "ResNet-50":
        net, x = resnet50(), photos([0])[0]
    else:
        net, x = pl.load("efficientnet-lite0").net, photos([0])[0]
    with torch.no_grad():
        return Case(name, net, x, int(net(x).argmax()))


def photos(indices: Sequence[int]) -> list[Tensor]:
    """Photos of the validation set as EfficientNet-Lite0 takes them."""
    files = sorted(PHOTOS.iterdir())
    model = pl.load("efficientnet-lite0")
    return [model.read(files[i]).tensor for i in indices]


def contenders_of(case: Case, captum_batch: int, captum_bf16_batch: int) -> dict[str, Explain]:
    """All of them at equal samples."""
    return {
        "pellucid": pellucid(case),
        "pellucid bf16": pellucid(case, precision="bfloat16"),
        "Captum default": captum(case),
        f"Captum, batch {captum_batch}": captum(case, batch=captum_batch),
        f"Captum, batch {captum_bf16_batch}, channels_last + bf16": captum(case, batch=captum_bf16_batch, bf16=True),
        "PAIR saliency": pair(case),
        "Zennit": zennit(case),
    }


# --- the tables --------------------------------------------------------------------------------------------------


def equal_samples(rounds: int) -> Iterator[str]:
    """Seconds, ratios and memory with n = 50 on three networks."""
    for name in ("EfficientNet-Lite0", "ResNet-50", "ResNet-56"):
        case = case_of(name)
        batches = best_batch(case, bf16=False), best_batch(case, bf16=True)
        contenders = contenders_of(case, *batches)
        times = contest(contenders, rounds)
        yield f"\n**{name}**, {case.x.shape[2]} x {case.x.shape[3]}, n = {N}\n"
        yield "| | seconds | times pellucid's fp32 | times pellucid's bf16 | peak MiB added |\n|---|--:|--:|--:|--:|"
        for contender in contenders:
            ratios = f"{times.ratio(contender, 'pellucid')} | {times.ratio(contender, 'pellucid bf16')}"
            memory = peak(name, contender.replace("Captum, batch ", "captum:")) if name != "ResNet-56" else None
            shown = "" if memory is None else f"{memory:.0f}"
            yield f"| {contender} | {times.median(contender):.2f} | {ratios} | {shown} |"


def relative(map_: Tensor, halves: tuple[Tensor, Tensor]) -> float:
    """Squared error over the signal's power, free of the reference's own noise: mean (m - a)(m - b) / mean ab."""
    a, b = halves
    return float(((map_ - a) * (map_ - b)).mean() / (a * b).mean())


def equal_error(indices: Sequence[int], reference: int, rounds: int) -> Iterator[str]:
    """How long pellucid's estimators take to the error of the plain mean with n = 50 and with n = 300."""
    case = case_of("EfficientNet-Lite0")
    model = pl.TorchModel(case.net)
    inputs = photos(indices)
    targets = [int(model.predict(x).outputs.argmax()) for x in inputs]

    def explain(x: Tensor, target: int, n: int, estimator: pl.Estimator, seed: int = 0) -> pl.Attribution:
        return pl.SmoothGrad(n_samples=n, noise_level=LEVEL, estimator=estimator, seed=seed)(model, x, target)

    halves = []
    for x, target in zip(inputs, targets, strict=True):
        pair_ = [explain(x, target, reference // 2, pl.Mean(), seed).scores[0].double() for seed in (1000, 1001)]
        halves.append((pair_[0], pair_[1]))

    def error(n: int, estimator: pl.Estimator) -> tuple[float, float]:
        """Median squared error over the photos, and the median of true over estimated error."""
        found = [explain(x, t, n, estimator) for x, t in zip(inputs, targets, strict=True)]
        true = np.array([relative(a.scores[0].double(), h) for a, h in zip(found, halves, strict=True)])
        estimated = np.array([float(a.estimated_error) for a in found])
        return float(np.median(true)), float(np.median(np.sqrt(np.maximum(true, 0)) / estimated))

    plain = {n: error(n, pl.Mean())[0] for n in (50, 300)}
    estimators = {"Shrunk(Factored())": pl.Shrunk(pl.Factored()), "Combined()": pl.Combined(), "Shrunk()": pl.Shrunk()}
    yield f"\n{len(inputs)} photos, reference of 2 x {reference // 2} samples of other seeds; squared error, median:\n"
    yield "| n | plain mean | " + " | ".join(estimators) + " |\n|--:|--:|" + "--:|" * len(estimators)
    curves: dict[str, dict[int, float]] = {name: {} for name in estimators}
    for n in GRID:
        cells = []
        for name, estimator in estimators.items():
            if name != "Shrunk(Factored())" and n not in (8, 16, 48):
                cells.append("")
                continue
            curves[name][n], calibration = error(n, estimator)
            cells.append(f"{curves[name][n]:.3f} (true / estimated {calibration:.2f})")
        yield (
            f"| {n} | {error(n, pl.Mean())[0]:.2f} | " + " | ".join(cells) + " |"
            if n in (8, 16, 48)
            else (f"| {n} | | " + " | ".join(cells) + " |")
        )
    yield f"| 50 | {plain[50]:.3f} | | | |\n| 300 | {plain[300]:.3f} | | | |"

    best = curves["Shrunk(Factored())"]
    needed = {n: min((m for m in best if best[m] <= plain[n]), default=None) for n in plain}
    yield "\n| the error of the plain mean with | squared | pellucid takes | Captum default takes | Captum best takes |"
    yield "|---|--:|--:|--:|--:|"
    batch = best_batch(case, bf16=False)
    for n, samples in needed.items():
        if samples is None:
            yield f"| n = {n} | {plain[n]:.3f} | not reached | | |"
            continue
        runs = contest(
            {"ours": pellucid(case, samples, estimators["Shrunk(Factored())"]), "default": captum(case),
             "best": captum(case, batch=batch)}, rounds,
        )  # fmt: skip
        times = n / N  # Captum holds all copies at once by default: 300 do not fit, so it is called n / 50 times
        ratios = [np.array(runs.seconds[peer]) * times / np.array(runs.seconds["ours"]) for peer in ("default", "best")]
        shown = [f"{np.median(r):.1f} ({r.min():.1f}-{r.max():.1f}) times as long" for r in ratios]
        yield f"| n = {n} | {plain[n]:.3f} | {samples}, {runs.median('ours'):.2f} s | {shown[0]} | {shown[1]} |"


def engine(rounds: int) -> Iterator[str]:
    """The whole call against the bare loop."""
    yield "\n| | bare loop, s | pellucid, s | pellucid over the bare loop |\n|---|--:|--:|--:|"
    for name in ("EfficientNet-Lite0", "ResNet-56"):
        case = case_of(name)
        rows = pl.TorchModel(case.net).rows(case.x)
        loop = min((4, rows), key=lambda b: contest({"b": bare(case, N, b)}, 2).median("b"))
        times = contest({"bare": bare(case, N, loop), "pellucid": pellucid(case)}, rounds)
        seconds = " | ".join(f"{times.median(key):.3f}" for key in ("bare", "pellucid"))
        yield f"| {name}, n = {N} | {seconds} | {times.ratio('pellucid', 'bare')} |"


def growth(rounds: int) -> Iterator[str]:
    """How the cost grows with samples, batch and image size."""
    case = case_of("EfficientNet-Lite0")
    model = pl.TorchModel(case.net)
    yield "\n| | seconds | a sample, ms |\n|---|--:|--:|"

    def row(what: str, x: Tensor, n: int) -> str:
        run = lambda: pl.SmoothGrad(n_samples=n)(model, x, case.target)  # noqa: E731
        seconds = contest({"run": run}, rounds).median("run")  # type: ignore[dict-item]
        return f"| {what} | {seconds:.2f} | {1000 * seconds / (n * len(x)):.1f} |"

    for n in (1, 10, 50, 200):
        yield row(f"n = {n}", case.x, n)
    for count in (2, 8):
        yield row(f"{count} photos, n = 16", torch.cat(photos(range(count))), 16)
    for side in (112, 320):
        yield row(f"{side} x {side}, n = 16", torch.nn.functional.interpolate(case.x, side), 16)


def command_line(rounds: int) -> Iterator[str]:
    """`pellucid --help`, and from photo to picture, against `import torch` and the bare loop."""
    program = str(Path(sys.executable).parent / "pellucid")
    with tempfile.TemporaryDirectory() as folder:
        from skimage import data

        Image.fromarray(data.chelsea()).save(Path(folder) / "cat.png")

        def command(*words: str) -> Explain:
            return lambda: subprocess.run(words, cwd=folder, check=True, capture_output=True)  # type: ignore[return-value]

        photo = command(program, "explain", "cat.png", "--force", "--samples", "50", "--estimator", "mean")
        runs = {
            "help": command(program, "--help"),
            "torch": command(sys.executable, "-c", "import torch"),
            "photo": photo,
        }
        runs["bare"] = bare(case_of("EfficientNet-Lite0"))
        times = contest(runs, rounds)
    seconds = {name: np.array(values) for name, values in times.seconds.items()}
    help_, whole = seconds["help"] / seconds["torch"], seconds["photo"] / (seconds["torch"] + seconds["bare"])
    yield "\n| | seconds | ratio |\n|---|--:|--:|"
    yield f"| `import torch` | {times.median('torch'):.2f} | |"
    yield f"| `pellucid --help` | {times.median('help'):.2f} | {np.median(help_):.2f} of `import torch` |"
    share = f"{np.median(whole):.2f} of `import torch` + bare loop"
    yield f"| photo to picture, n = 50 | {times.median('photo'):.2f} | {share} |"


def machine(rounds: int) -> Iterator[str]:
    """What the processor convolves at most, and what share of it the networks reach."""
    from torch.utils.flop_counter import FlopCounterMode

    yield f"\n{_processor()}, {torch.get_num_threads()} threads, torch {torch.__version__}\n"
    yield "| | GFLOP/s in float32 | in bfloat16 |\n|---|--:|--:|"
    x, layer = torch.randn(12, 256, 28, 28), nn.Conv2d(256, 256, 3, padding=1).requires_grad_(False)
    x, layer = x.contiguous(memory_format=torch.channels_last), layer.to(memory_format=torch.channels_last)
    work = 2 * 12 * 28 * 28 * 256 * 256 * 9
    peaks = []
    for dtype in (torch.float32, torch.bfloat16):
        image, convolution = x.to(dtype), copy.deepcopy(layer).to(dtype)
        with torch.no_grad(), kept_heap(torch.device("cpu")):
            run = lambda image=image, convolution=convolution: convolution(image)  # noqa: E731
            peaks.append(work / min(contest({"run": run}, 40 * rounds).seconds["run"]) / 1e9)
    yield f"| one 3 x 3 convolution, 256 channels | {peaks[0]:.0f} | {peaks[1]:.0f} |"
    for name in ("EfficientNet-Lite0", "ResNet-50"):
        case = case_of(name)
        with FlopCounterMode(display=False) as counter:
            leaf = case.x.clone().requires_grad_()
            torch.autograd.grad(copy.deepcopy(case.net).requires_grad_(False)(leaf.clone())[:, 0].sum(), leaf)
        flops = counter.get_total_flops() * N
        times = contest({"a": pellucid(case), "b": pellucid(case, precision="bfloat16")}, rounds)
        rates = [flops / times.median(key) / 1e9 for key in "ab"]
        shares = [f"{rate:.0f} ({rate / best:.0%})" for rate, best in zip(rates, peaks, strict=True)]
        yield f"| {name}, n = {N} | {' | '.join(shares)} |"


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor()}, {os.cpu_count()} cores"


def main() -> None:
    """Run the benchmark, or one contender for its peak of memory."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer rounds and photos; nothing is written")
    parser.add_argument("--peak", nargs=2, metavar=("CASE", "CONTENDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peak:
        print(json.dumps(_peak_of(*options.peak)))
        return
    rounds = 2 if options.quick else 5
    indices = range(10, 650, 160) if options.quick else range(10, 650, 50)  # none of them was used for tuning
    parts = {
        "machine": lambda: machine(rounds),
        "equal samples": lambda: equal_samples(rounds),
        "equal error": lambda: equal_error(indices, 200 if options.quick else 1000, rounds),
        "engine": lambda: engine(2 * rounds),
        "growth": lambda: growth(rounds),
        "command line": lambda: command_line(rounds),
    }
    started = time.monotonic()
    text = README.read_text()
    for name, part in parts.items():
        print(f"\n## {name}", flush=True)
        lines = []
        for line in part():
            print(line, flush=True)
            lines.append(line)
        start, end = f"<!-- {name} -->\n", f"<!-- end {name} -->"
        before, _, rest = text.partition(start)
        text = before + start + "\n".join(lines).strip("\n") + "\n" + end + rest.partition(end)[2]
    print(f"\n{time.monotonic() - started:.0f} s")
    if not options.quick:
        README.write_text(text)


def _peak_of(name: str, contender: str) -> float:
    case = case_of(name)
    if contender.startswith("captum:"):
        batch, _, rest = contender.removeprefix("captum:").partition(",")
        run = captum(case, batch=int(batch), bf16=bool(rest))
    else:
        makers = {"pellucid": pellucid, "Captum default": captum, "PAIR saliency": pair, "Zennit": zennit}
        run = pellucid(case, precision="bfloat16") if contender == "pellucid bf16" else makers[contender](case)
    before = resident("VmRSS")
    run()
    return (resident("VmHWM") - before) / 2**20


if __name__ == "__main__":
    main()

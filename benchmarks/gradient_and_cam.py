"""How fast pellucid's gradient methods and class activation maps are beside Captum, PAIR saliency and grad-cam.

It runs for about 12 minutes on two cores and writes its tables into benchmarks/README.md; `--quick` (2 minutes) prints
the most important. Each library has a process of its own for each network; they take turns within
each round. Before anything is timed, the maps of every pair are compared: speed is told of equal work.
"""

import argparse
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from arena import Contest, Process, Worker, fastest_batch, processor, report
from rivals import Contender, explainer
from torch.nn.functional import interpolate

LITE0, RESNET = "EfficientNet-Lite0", "ResNet-50"
LAYERS = {
    LITE0: {"": "", "last": "head", "middle": "stages.4", "masking": "stages.6", "ablated": "head", "few": "stem"},
    RESNET: {"": "", "last": "layer4", "middle": "layer3", "masking": "layer1", "ablated": "layer3", "few": "relu"},
}
"""Layers to be masked and ablated have 256 to 1280 channels, for each of which the peers run the network. Only behind a
ReLU does grad-cam ablate as the paper does."""

STEPS, SOME = 50, 16  # of methods of many passes, and of the trials that find the best batch
OURS, HALF = "pellucid", "in bfloat16"


@dataclass(frozen=True)
class Match:
    """A method, the peers that have it with the batch sizes to be tried, and how many times faster pellucid shall be.

    `alike` is the least correlation of the maps; where conventions differ there is none. `check` are settings under
    which the maps are compared, if not as timed.
    """

    title: str
    method: str
    peers: Mapping[str, Sequence[int]]
    bar: float = 1.0
    n: int = 1
    layer: str = ""
    alike: float | None = 0.98
    inputs: int = 1
    check: Mapping[str, Any] = field(default_factory=dict)

    @property
    def long(self) -> bool:
        """Whether a pass for each channel is timed, so that a first run at another layer warms up."""
        return self.layer in ("masking", "ablated")


MANY, MASKS = (4, 8, 16), (8, 16, 32)
ONE: tuple[int, ...] = ()
ALONE = {"grad-cam": ONE}
MATCHES = (
    Match("Integrated Gradients", "integrated-gradients", {"Captum": MANY, "PAIR": MANY}, 1.5, STEPS),
    Match("SmoothGrad of Input x Gradient", "smooth-input-x-gradient", {"Captum": MANY}, 1.5, STEPS),
    Match("SmoothGrad of Grad-CAM", "smooth-grad-cam", {"Captum": MANY, "PAIR": ONE}, 1.5, STEPS, "last"),
    Match("Score-CAM", "score-cam", {"grad-cam": MASKS}, 1.5, layer="masking"),
    Match("Ablation-CAM", "ablation-cam", {"grad-cam": MASKS}, 1.5, layer="ablated"),
    Match("Layer Integrated Gradients", "layer-integrated-gradients", {"Captum": MANY}, 1.5, STEPS, "middle"),
    # The points and the rule of the integral differ: the trapezoid rule here, there the left end of each piece.
    Match("Conductance", "conductance", {"Captum": MANY}, 1.5, STEPS, "middle", alike=0.9),
    # In single precision another rounding of a gradient puts another feature first, and the paths part.
    Match(
        "Guided Integrated Gradients", "guided-integrated-gradients", {"PAIR": ONE}, 1.0, 20,
        check={"n": 4, "double": True},
    ),
    # grad-cam divides each channel of a bias by its own greatest value, and counts what batch norms subtract as biases.
    Match("FullGrad", "full-grad", ALONE, alike=None),
    Match("Simple Gradient", "simple-gradient", {"Captum": ONE, "PAIR": ONE}),
    Match("Input x Gradient", "input-x-gradient", {"Captum": ONE}),
    Match("Grad-CAM", "grad-cam", {"Captum": ONE, "PAIR": ONE, **ALONE}, layer="last"),
    Match("Grad-CAM++", "grad-cam++", ALONE, layer="last"),
    Match("HiResCAM", "hires-cam", ALONE, layer="last"),
    Match("XGrad-CAM", "xgrad-cam", ALONE, layer="last"),
    Match("LayerCAM", "layer-cam", ALONE, layer="last"),
    # What a call costs besides its passes is shared by the photos that are given at once.
    Match("Simple Gradient, 6 photos", "simple-gradient", {"Captum": ONE}, inputs=6),
    Match("Input x Gradient, 6 photos", "input-x-gradient", {"Captum": ONE}, inputs=6),
    Match("Grad-CAM, 6 photos", "grad-cam", {"Captum": ONE, **ALONE}, layer="last", inputs=6),
    Match("Grad-CAM++, 6 photos", "grad-cam++", ALONE, layer="last", inputs=6),
    Match("HiResCAM, 6 photos", "hires-cam", ALONE, layer="last", inputs=6),
    Match("LayerCAM, 6 photos", "layer-cam", ALONE, layer="last", inputs=6),
    # grad-cam subtracts each channel's mean.
    Match("EigenCAM", "eigen-cam", ALONE, layer="last", alike=None),
)  # fmt: skip


@dataclass(frozen=True)
class Pace:
    """How long a match may take: rounds of about so many seconds in all, and whether peers' defaults are timed."""

    seconds: float
    least: int
    most: int
    defaults: bool


class Hall:
    """The processes of one network: each library has one, pellucid one for each precision."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack, self._processes = stack, {}
        self._folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        self._maps: dict[Contender, Path] = {}

    def process(self, contender: Contender) -> Process:
        """The process that runs it."""
        key = contender.who, contender.bf16
        if key not in self._processes:
            self._processes[key] = self._stack.enter_context(Process(type(contender).__module__))
        return self._processes[key]

    def worker(self, contender: Contender, *, warm: bool) -> Worker:
        """The contender after its first run, whose map is kept."""
        return Worker(contender, self.process(contender), self._place(contender), warm=warm)

    def map(self, contender: Contender) -> np.ndarray:
        """The map of the contender's first run, which may be yet to come."""
        if contender not in self._maps:
            self.process(contender).run(contender, self._place(contender))
        return np.load(self._maps[contender])

    def _place(self, contender: Contender) -> Path:
        return self._maps.setdefault(contender, self._folder / f"{len(self._maps)}.npy")


# --- one match ---------------------------------------------------------------------------------------------------


def entrants(match: Match, case: str, hall: Hall, *, defaults: bool) -> dict[str, Contender]:
    """Who takes part: pellucid in both precisions, and each peer as it comes and as it is fastest."""
    layer = LAYERS[case][match.layer]
    ours = Contender(case, match.method, "pellucid", n=match.n, layer=layer, inputs=match.inputs)
    found = {OURS: ours, HALF: replace(ours, bf16=True)}
    for who, batches in match.peers.items():
        peer = replace(ours, who=who)
        if batches:
            default = {"score-cam": 16, "ablation-cam": 32}.get(match.method)
            best = fastest_batch(hall.process(peer), _trial(match, peer), batches)
            if defaults and who != "PAIR" and best != default:
                found[f"{who} default"] = peer
            found[f"{who}, batch {best}"] = replace(peer, batch=best)
        else:
            if defaults and who == "grad-cam" and match.method not in ("eigen-cam", "full-grad"):
                found[f"{who} default"] = replace(peer, thawed=True)
            found[who] = peer
    return found


def _trial(match: Match, contender: Contender) -> Contender:
    """The same with less to do: fewer steps, or at a layer with few channels."""
    if match.long:
        return replace(contender, layer=LAYERS[contender.case]["few"])
    return replace(contender, n=min(contender.n, SOME))


def agreement(match: Match, ours: Contender, peer: Contender, hall: Hall) -> float:
    """The least correlation of the peer's maps with ours in its convention: 1 if they are equal but for scale and
    offset.
    """
    ours, peer = replace(ours, **match.check), replace(peer, **match.check)
    alike = replace(ours, like=peer.who)
    if explainer(alike) != explainer(ours):
        ours = alike
    a, b = (torch.from_numpy(hall.map(one)).double() for one in (ours, peer))
    if a.shape != b.shape:  # the peer has enlarged what speaks for the class
        a = interpolate(a.clamp(min=0), size=b.shape[2:], mode="bilinear")
    return min(float(np.corrcoef(one.flatten(), other.flatten())[0, 1]) for one, other in zip(a, b, strict=True))


def rows(match: Match, case: str, hall: Hall, pace: Pace) -> Iterator[str]:
    """The rows of one method on one network."""
    contenders = entrants(match, case, hall, defaults=pace.defaults)
    if match.long:
        for one in contenders.values():
            hall.process(one).run(_trial(match, one))
    workers = {name: hall.worker(one, warm=match.long) for name, one in contenders.items()}
    peers = [name for name in workers if name not in (OURS, HALF)]
    alike = {name: agreement(match, contenders[OURS], contenders[name], hall) for name in peers}
    quickest: dict[str, str] = {}  # of each library
    for name in sorted(peers, key=lambda name: workers[name].first):
        quickest.setdefault(contenders[name].who, name)
    # What takes over a second takes no turns if the same library has done it faster.
    turns = {
        name: worker
        for name, worker in workers.items()
        if name not in peers or worker.first < 1 or name in quickest.values()
    }
    done = len(turns[OURS].seconds)
    rounds = int(pace.seconds / sum(worker.first for worker in turns.values()))
    contest = Contest(turns).run(max(min(rounds, pace.most), pace.least) - done)

    rivals = [name for name in turns if name in peers]
    fastest = min(rivals, key=contest.median)
    others = [f"{name} {contest.median(name):.3g}" for name in rivals if name != fastest]
    others += [f"{name} {workers[name].first:.3g} (once)" for name in peers if name not in rivals]
    same = min(alike.values())
    for name in (OURS, HALF):
        ratios = contest.ratios(fastest, name)
        low, middle, high = np.quantile(ratios, (0.25, 0.5, 0.75))
        verdict = ""
        if name == OURS:
            verdict = f"{match.bar:.1f}" + ("" if middle >= match.bar else " **missed**")
            if match.alike is not None and not same >= match.alike:
                verdict += " **maps differ**"
        peaks = f"{workers[name].peak:.0f} / {workers[fastest].peak:.0f}"
        cells = [
            f"{match.title}{_work(match)}" if name == OURS else HALF,
            f"{contest.median(name):.3g}",
            f"{fastest} {contest.median(fastest):.3g}" if name == OURS else "",
            f"{middle:.2f} ({low:.2f}-{high:.2f})",
            verdict,
            peaks if name == OURS else f"{workers[name].peak:.0f}",
            f"{same:.3f}" if name == OURS else "",
            "; ".join(others) if name == OURS else "",
        ]
        yield f"| {' | '.join(cells)} |"


def _work(match: Match) -> str:
    return f", {match.n}" if match.n > 1 else ""


# --- the tables --------------------------------------------------------------------------------------------------


def gradient_and_cam(cases: Sequence[str], pace: Pace) -> Iterator[str]:
    """Seconds, ratios, memory and agreement of each method on each network."""
    versions = ", ".join(f"{name} {version(name)}" for name in ("captum", "saliency", "grad-cam"))
    yield f"\n{processor()}, {torch.get_num_threads()} threads, torch {torch.__version__}, {versions}"
    for case in cases:
        layers = LAYERS[case]
        yield (
            f"\n**{case}**, 224 x 224; maps of cells at `{layers['last']}`, Score-CAM at `{layers['masking']}`, "
            f"Ablation-CAM at `{layers['ablated']}`, Layer Integrated Gradients and Conductance at "
            f"`{layers['middle']}`\n"
        )
        yield "| | seconds | fastest peer, s | times pellucid's | bar | peak MiB, its | maps | other peers, s |"
        yield "|---|--:|---|--:|--:|--:|--:|---|"
        with ExitStack() as stack:
            hall = Hall(stack)
            # The defaults of the peers take the most, so they are timed where they take least.
            here = replace(pace, defaults=pace.defaults and case == LITE0)
            for match in MATCHES:
                yield from rows(match, case, hall, here)


LIMITS = {
    LITE0: {"integrated-gradients": "300MiB", "score-cam": "300MiB", "ablation-cam": "300MiB"},
    RESNET: {"integrated-gradients": "400MiB", "score-cam": "400MiB", "ablation-cam": "400MiB"},
}


def memory_limits() -> Iterator[str]:
    """What calls under a limit take, first in their process, by pellucid's own measure and by the system's."""
    yield "\n| | limit, MiB | predicted | measured in the call | the process's peak | |\n|---|--:|--:|--:|--:|---|"
    for case, limits in LIMITS.items():
        for match in MATCHES:
            if match.method in limits:
                layer = LAYERS[case][match.layer]
                limit = limits[match.method]
                how = Contender(case, match.method, "pellucid", n=match.n, layer=layer, memory_limit=limit)
                with ExitStack() as stack:
                    hall = Hall(stack)
                    worker = hall.worker(how, warm=True)
                    sizes = hall.map(how) / 2**20
                under = "under it" if max(sizes[2], worker.peak) <= sizes[0] else "**over it**"
                numbers = " | ".join(f"{size:.0f}" for size in (*sizes, worker.peak))
                yield f"| {match.title}{_work(match)}, {case} | {numbers} | {under} |"


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one network, fewer rounds; nothing is written")
    options = parser.parse_args()
    if options.quick:
        parts = {"gradient and cam": lambda: gradient_and_cam((LITE0,), Pace(2, least=1, most=5, defaults=False))}
    else:
        pace = Pace(10, least=2, most=15, defaults=True)
        parts = {"gradient and cam": lambda: gradient_and_cam((LITE0, RESNET), pace), "memory limits": memory_limits}
    report(parts, write=not options.quick)


if __name__ == "__main__":
    main()

"""How fast pellucid's methods of relevance are beside Captum and Zennit, and beside a plain gradient.

It runs for about 3 minutes on two cores and writes its tables into benchmarks/README.md; `--quick` prints the part on
one network. Each library has a process of its own for each network; they take turns within each round. Before anything
is timed, the maps of every pair are compared: speed is told of equal work.
"""

import argparse
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from importlib.metadata import version

import numpy as np
import torch
from arena import Contest, processor, report
from gradient_and_cam import LITE0, ONE, RESNET, Hall, Match, Pace, rows
from rivals import Contender

ZENNIT = {"Zennit": ONE}
BOTH = {"Captum": ONE, "Zennit": ONE}
MATCHES = (
    Match("Guided Backpropagation", "guided-backprop", BOTH),
    Match("Guided Backpropagation, 6 photos", "guided-backprop", BOTH, inputs=6),
    Match("Deconvnet", "deconvnet", BOTH),
    Match("LRP, EpsilonPlus", "lrp-epsilon-plus", ZENNIT),
    Match("LRP, EpsilonPlusFlat", "lrp-epsilon-plus-flat", ZENNIT),
    Match("LRP, EpsilonPlusFlat, 6 photos", "lrp-epsilon-plus-flat", ZENNIT, inputs=6),
    Match("LRP, EpsilonAlpha2Beta1Flat", "lrp-epsilon-alpha2-beta1-flat", ZENNIT),
    Match("LRP, EpsilonGammaBox", "lrp-epsilon-gamma-box", ZENNIT),
)
OVER = {"guided-backprop": 1.5, "deconvnet": 1.5, "lrp-epsilon-plus-flat": 3.0, "lrp-epsilon-alpha2-beta1-flat": 3.0,
        "lrp-epsilon-gamma-box": 3.0, "deep-lift": 3.0}  # fmt: skip
"""How many times a plain gradient's time each may take."""


def against_peers(cases: Sequence[str], pace: Pace) -> Iterator[str]:
    """Seconds, ratios, memory and agreement of each method on each network."""
    versions = ", ".join(f"{name} {version(name)}" for name in ("captum", "zennit"))
    yield f"\n{processor()}, {torch.get_num_threads()} threads, torch {torch.__version__}, {versions}"
    for case in cases:
        yield f"\n**{case}**, 224 x 224\n"
        yield "| | seconds | fastest peer, s | times pellucid's | bar | peak MiB, its | maps | other peers, s |"
        yield "|---|--:|---|--:|--:|--:|--:|---|"
        with ExitStack() as stack:
            hall = Hall(stack)
            for match in MATCHES:
                if case == LITE0:  # neither peer sees what is no module; the correlation is told
                    match = replace(match, alike=None)  # noqa: PLW2901  # the same match
                yield from (row for row in rows(match, case, hall, pace) if not row.startswith("| in bfloat16"))


def over_gradient(cases: Sequence[str], rounds: int) -> Iterator[str]:
    """How many times the time of a plain gradient each method takes."""
    yield f"\n| | {' | '.join(cases)} | bar |\n|---|{'--:|' * len(cases)}--:|"
    for method, bar in OVER.items():
        cells = []
        for case in cases:
            with ExitStack() as stack:
                hall = Hall(stack)
                gradient, own = (Contender(case, name, "pellucid") for name in ("simple-gradient", method))
                workers = {name: hall.worker(one, warm=False) for name, one in (("plain", gradient), ("own", own))}
                low, middle, high = np.quantile(Contest(workers).run(rounds).ratios("own", "plain"), (0.25, 0.5, 0.75))
                cells.append(f"{middle:.2f} ({low:.2f}-{high:.2f})" + ("" if middle <= bar else " **missed**"))
        yield f"| {method} | {' | '.join(cells)} | {bar:.1f} |"


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one network, fewer rounds; nothing is written")
    options = parser.parse_args()
    cases = (LITE0,) if options.quick else (LITE0, RESNET)
    pace = Pace(2 if options.quick else 6, least=3, most=15, defaults=False)
    parts = {
        "relevance": lambda: against_peers(cases, pace),
        "relevance over gradient": lambda: over_gradient(cases, 5 if options.quick else 15),
    }
    report(parts, write=not options.quick)


if __name__ == "__main__":
    main()

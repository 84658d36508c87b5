"""Contenders in processes of their own, which take turns over pipes; the one that waits does nothing.

A contender is a frozen value of plain settings with a method `explain`, which gives what is timed. So neither memory
nor settings of one reach another. `python arena.py contenders` serves the contenders of that module.
"""

import ctypes
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from functools import cache
from importlib import import_module
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import numpy as np
from torch import Tensor

README = Path(__file__).with_name("README.md")

Explain = Callable[[], Tensor]
"""One map of one input."""


class Contender(Protocol):
    """Who explains what, and how: a frozen dataclass of text and numbers."""

    def explain(self) -> Explain:
        """The explanation, ready to be timed."""


# --- processes ---------------------------------------------------------------------------------------------------


class Process:
    """A process that runs the contenders of one module. It starts at once, and is asked for one run at a time."""

    def __init__(self, module: str) -> None:
        command = [sys.executable, "-W", "ignore", __file__, module]
        quiet = {**os.environ, "TQDM_DISABLE": "1"}  # grad-cam draws bars
        self._child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=quiet)

    def run(self, contender: Any, save: Path | None = None) -> dict[str, float]:
        """One run: its seconds, and the MiB that the contender's first run took. The map is saved if asked for."""
        assert self._child.stdin is not None and self._child.stdout is not None  # noqa: S101, PT018  # pipes
        asked = {"contender": asdict(contender), "save": None if save is None else str(save)}
        print(json.dumps(asked), file=self._child.stdin, flush=True)
        line = self._child.stdout.readline()
        if not line:
            raise SystemExit(f"The process of {contender} ended with {self._child.wait()}.")
        said: dict[str, float] = json.loads(line)
        return said

    def __enter__(self) -> "Process":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._child.stdin is not None  # noqa: S101  # a pipe
        self._child.stdin.close()
        self._child.wait()


class Worker:
    """A contender in a process of its own, or in one that serves several.

    `first` and `peak` are the seconds and the MiB that its first run took. That run warms up, and counts only where all
    is `warm`.
    """

    def __init__(
        self, contender: Contender, process: Process | None = None, save: Path | None = None, *, warm: bool = False
    ) -> None:
        self.contender = contender
        self._own = process is None
        self._process = process or Process(type(contender).__module__)
        said = self._process.run(contender, save)
        self.first, self.peak = said["seconds"], said["peak"]
        self.seconds = [self.first] if warm else []

    def run(self) -> float:
        """One explanation, in seconds."""
        self.seconds.append(self._process.run(self.contender)["seconds"])
        return self.seconds[-1]

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *raised: Any) -> None:
        if self._own:
            self._process.__exit__(*raised)


@cache
def best_batch(contender: Any, batches: tuple[int, ...]) -> int:
    """The batch size in which the contender is fastest on this machine, tried in a process of their own."""
    with Process(type(contender).__module__) as process:
        return fastest_batch(process, contender, batches)


def fastest_batch(process: Process, contender: Any, batches: Iterable[int]) -> int:
    """The batch size in which the contender is fastest in this process: the better of two runs."""
    tried = {b: replace(contender, batch=b) for b in batches}
    seconds = {b: min(process.run(one)["seconds"] for _ in range(2)) for b, one in tried.items()}
    return min(seconds, key=lambda b: seconds[b])


# --- turns -------------------------------------------------------------------------------------------------------


class Contest:
    """Workers that take turns; the order turns by one each round, so that none always follows the same."""

    def __init__(self, workers: Mapping[str, Worker]) -> None:
        self.workers = dict(workers)

    @classmethod
    def between(cls, contenders: Mapping[str, Contender]) -> "Contest":
        """Each in a process of its own."""
        return cls({name: Worker(one) for name, one in contenders.items()})

    def run(self, rounds: int) -> "Contest":
        """So many rounds, after which processes of the workers' own end."""
        names = list(self.workers)
        for turn in range(rounds):
            for name in names[turn % len(names) :] + names[: turn % len(names)]:
                self.workers[name].run()
        for worker in self.workers.values():
            worker.__exit__(None, None, None)
        return self

    def median(self, name: str) -> float:
        """The median seconds of a contender."""
        return float(np.median(self.workers[name].seconds))

    def ratios(self, slower: str, faster: str) -> np.ndarray:
        """How many times faster in each round."""
        return np.array(self.workers[slower].seconds) / np.array(self.workers[faster].seconds)

    def ratio(self, slower: str, faster: str) -> str:
        """How many times faster: median, and the range of the rounds."""
        return spread(self.ratios(slower, faster))


def spread(ratios: np.ndarray) -> str:
    """Median, least and largest."""
    return f"{np.median(ratios):.2f} ({ratios.min():.2f}-{ratios.max():.2f})"


# --- what is told ------------------------------------------------------------------------------------------------


def processor() -> str:
    """The processor's name and cores."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor()}, {os.cpu_count()} cores"


def report(parts: Mapping[str, Callable[[], Iterator[str]]], *, write: bool) -> None:
    """Print the lines of each part as they come; `write` them between the part's marks in README.md."""
    started = time.monotonic()
    for name, part in parts.items():
        print(f"\n## {name}", flush=True)
        lines = []
        for line in part():
            print(line, flush=True)
            lines.append(line)
        print(f"({time.monotonic() - started:.0f} s)", flush=True)
        if write:
            README.write_text(_between_marks(README.read_text(), name, lines))


def _between_marks(text: str, name: str, lines: Sequence[str]) -> str:
    start, end = f"<!-- {name} -->\n", f"<!-- end {name} -->"
    before, _, rest = text.partition(start)
    return before + start + "\n".join(lines).strip("\n") + "\n" + end + rest.partition(end)[2]


# --- in the process ----------------------------------------------------------------------------------------------


def resident(key: str) -> int:
    """Bytes resident now (VmRSS) or at most so far (VmHWM)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key):
            return int(line.split()[1]) * 1024
    raise SystemExit("The peak of memory is read from /proc, which this system does not have.")


def serve(module: str) -> None:
    """Run the contender of each line that comes. What it needs is made at its first run, before it is timed."""
    replies, sys.stdout = sys.stdout, sys.stderr  # some libraries print
    kind = import_module(module).Contender
    ready: dict[Any, tuple[Explain, int]] = {}
    peaks: dict[Any, float] = {}
    for line in sys.stdin:
        asked = json.loads(line)
        contender = kind(**asked["contender"])
        if contender not in ready:
            explain = contender.explain()
            _forget_peaks()
            ready[contender] = explain, resident("VmRSS")
        explain, before = ready[contender]
        start = time.perf_counter()
        found = explain()
        seconds = time.perf_counter() - start
        peak = peaks.setdefault(contender, (resident("VmHWM") - before) / 2**20)
        if asked["save"] is not None:
            np.save(asked["save"], found.detach().numpy())
        print(json.dumps({"seconds": seconds, "peak": peak}), file=replies, flush=True)


def _forget_peaks() -> None:
    """Give back what was left in the heap before, and begin the peak anew."""
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")


if __name__ == "__main__":
    serve(sys.argv[1])

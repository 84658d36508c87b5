"""What a call takes of memory: bounded and predicted before it, measured while it runs.

Predicted is the growth of a call's memory above its start, in bytes:

    base + kept + max(slack (live(rows) + rows engine), finishing)

`live` are the tensors of a pass (footprint.py), `kept` is what sampling holds of every input, `engine` what it holds of
every row besides the network, `finishing` what a map needs at its end. `slack` is for what cannot be counted:
workspaces of operations, and gaps in the heap. Measured on CPUs for six networks, 1 to 128 rows, one and two threads,
plain and bfloat16, the real peak was 0.4 to 0.95 of it; of passes by rules, which footprint.py runs as such, 0.4 to 0.8
of it (EfficientNet-Lite0, SqueezeNet, ResNets, a ViT). For GPUs the numbers are the same, and were not measured.
"""

import re
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from pellucid.core.footprint import Footprint
from pellucid.core.replicas import divided
from pellucid.errors import ArgumentError, MemoryLimit

__all__ = ["Budget", "Memory", "ResidentPeak", "Watch", "available", "bytes_of", "in_mib"]

_MIB = 2**20
_UNITS = {"B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": _MIB, "GiB": 2**30}

_BASE = 80 * _MIB
"""Threads, compiled kernels and whatever a first call loads."""

_SLACK = 1.35
_DIGITS, _SUMS = 36, 16
"""Of the moments of one map, for each of its elements: bytes in float64, and batch sums in the map's own type."""

_RESULT = 4
"""Numbers of that type that a result holds for each element."""

_FINISHING = 250
"""Bytes for each element of a map that an estimator needs at the end, the wavelets' most of all."""

_ENGINE = 6
"""Arrays like the rows that sampling holds at once: noise of two micro-batches, copies, earlier maps."""

_FACTORED = 4
"""More of them, with plain maps beside factored ones."""

_ARRIVED = 4
"""Arrays like the rows of a pass by rules: messages and relevance that landed, of its shares and joined."""

_EVERY = 0.002  # seconds between two looks at the resident memory


@dataclass(frozen=True)
class Memory:
    """What a call under a memory limit took, in bytes above what there was at its start: predicted and measured peak.

    Measured is the resident memory of the process on a CPU, looked at every 2 ms, and what torch held on a GPU; of
    several memories the one that grew most.
    """

    limit: int
    predicted: int
    measured: int

    def __str__(self) -> str:
        return f"{in_mib(self.measured)} MiB of {in_mib(self.limit)} MiB allowed, {in_mib(self.predicted)} predicted"


def bytes_of(limit: Any) -> int:
    """A limit as a number of bytes: a whole number, or a text such as "2GiB".

    Raises:
        ArgumentError: neither.
    """
    if isinstance(limit, int) and not isinstance(limit, bool) and limit > 0:
        return limit
    text = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]+)\s*", limit) if isinstance(limit, str) else None
    if text is not None and text[2] in _UNITS and float(text[1]) > 0:
        return max(int(float(text[1]) * _UNITS[text[2]]), 1)
    raise ArgumentError(
        f"`memory_limit` is a text such as '2GiB' or '500MB' (units {', '.join(_UNITS)}), or a whole number of bytes. "
        f"Got {limit!r}."
    )


def in_mib(count: float) -> int:
    """MiB, rounded up."""
    return -int(-count // _MIB)


class ResidentPeak:
    """How far memory rises above what it is at the start, on whichever of the devices it rises most; in bytes.

    On a GPU torch's own peak is set back at the start.
    """

    def __init__(self, devices: Sequence[torch.device]) -> None:
        self._gpus = sorted({device.index or 0 for device in devices if device.type == "cuda"})
        self._cpu = len(self._gpus) < len({(device.type, device.index) for device in devices})
        self._rise = 0
        self._ended = threading.Event()

    def __enter__(self) -> "ResidentPeak":
        for gpu in self._gpus:
            torch.cuda.reset_peak_memory_stats(gpu)
        self._before = {gpu: torch.cuda.memory_allocated(gpu) for gpu in self._gpus}
        if self._cpu:
            import psutil

            self._process = psutil.Process()
            self._start = self._process.memory_info().rss
            self._thread = threading.Thread(target=self._look, name="pellucid-memory", daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        if self._cpu:
            self._thread.join()

    @property
    def rise(self) -> int:
        """The peak so far."""
        if self._cpu:
            self._note()
        return max([self._rise, *(torch.cuda.max_memory_allocated(gpu) - b for gpu, b in self._before.items())])

    def _look(self) -> None:
        while not self._ended.wait(_EVERY):
            self._note()

    def _note(self) -> None:
        self._rise = max(self._rise, self._process.memory_info().rss - self._start)


@dataclass(eq=False)
class Watch:
    """One call under a limit: what was predicted of it, and what it takes. `tell` hears the prediction, once."""

    limit: int
    resident: ResidentPeak
    predicted: int = 0
    tell: Callable[[int], None] | None = None

    def note(self, peak: int) -> None:
        """So much may be taken."""
        self.predicted = max(self.predicted, peak)

    def plan(self, peak: int) -> None:
        """So much is predicted of what comes next, which `tell` hears if it waits for it."""
        self.note(peak)
        if self.tell is not None:
            tell, self.tell = self.tell, None
            tell(self.predicted)

    def memory(self) -> Memory:
        """What there is to say of the call."""
        return Memory(self.limit, self.predicted, self.resident.rise)


def available(device: torch.device) -> int:
    """The bytes that are free there now."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    import psutil

    return int(psutil.virtual_memory().available)


def predicted(
    x: Tensor,
    inputs: int,
    rows: int,
    *,
    live: int,
    maps: int,
    factored: bool,
    weights: int,
    arrays: int = 0,
) -> int:
    """The growth of memory by a call that explains so many inputs like those of x, of each of which `maps` are sampled.

    `live` are the bytes of the networks' passes, `weights` those that the call keeps of its own, `arrays` how many like
    the rows the method holds besides.
    """
    elements, size = x[0].numel(), x.element_size()
    waiting = inputs + min(inputs, max(rows // 8, 1)) if maps else 0  # results, and moments on their way there
    digit = max(size, 4)  # maps are in float32 at the least
    held = weights + elements * (inputs * (size + _RESULT * digit) + waiting * maps * (_DIGITS + _SUMS * digit))
    arrays += (_ENGINE + _FACTORED * factored) if maps else 0
    engine = rows * elements * (digit * arrays + 2 * size)
    return int(_BASE + held + max(_SLACK * (live + engine), _FINISHING * maps * elements))


@dataclass(frozen=True, eq=False)
class Budget:
    """The memory that calls may take, if there is a limit, and what was learnt of the passes of each kind of inputs.

    Within a call, `inputs` is how many it explains.
    """

    limit: int | None
    footprints: dict[Any, Footprint] = field(default_factory=dict)
    inputs: int | None = None
    watch: Watch | None = None
    telling: bool = True

    def within(self) -> "Budget":
        """The same for a call within the call, which counts but of which nobody is told."""
        return replace(self, telling=False)

    def unlimited(self) -> "Budget":
        """For trials with one input, whose sizes are known to fit."""
        return replace(self, limit=None, inputs=1, watch=None)

    @contextmanager
    def watched(self, inputs: int, devices: Sequence[torch.device]) -> Iterator["Budget"]:
        """The budget of a call that explains so many inputs, with a watch if there is a limit."""
        if self.limit is None:
            yield replace(self, inputs=inputs)
            return
        with ResidentPeak(devices) as resident:
            yield replace(self, inputs=inputs, watch=Watch(self.limit, resident), telling=True)

    def peaks(
        self,
        x: Tensor,
        together: int,
        maps: int,
        *,
        devices: Sequence[torch.device],
        weights: int,
        kind: Any,
        measure: Callable[[Callable[[Footprint], bool]], Footprint],
        shared: int = 0,
        beside: bool = False,
    ) -> Callable[[int], int]:
        """The predicted peak of any number of rows like those of x, `together` of which cannot be parted.

        `measure` gives the footprint of such rows, which is kept as that of this `kind`; `weights` are bytes that the
        call holds besides. Passes by rules go through in shares of rows that lie there together, `shared`; rows
        `beside` go with them.
        """
        arrays = _ARRIVED + beside if shared else 0
        inputs = self.inputs or len(x)
        sharing = max(Counter(devices).values())  # networks in one memory

        def peak(rows: int, footprint: Footprint) -> int:
            share = divided(max(rows, together), len(devices), together)[0].stop
            live = sharing * footprint.live(share, kept=together > 1)
            return predicted(
                x, inputs, max(rows, shared), live=live, maps=maps, factored=together > 1, weights=weights,
                arrays=arrays,
            )  # fmt: skip

        def trial(rows: int, footprint: Footprint) -> int:
            live = footprint.live(rows, kept=True)
            return predicted(x, inputs, rows, live=live, maps=maps, factored=False, weights=weights)

        def two_fit(alone: Footprint) -> bool:
            return self.limit is None or trial(2, alone) <= self.limit

        known = self.footprints.get(kind)
        if known is None or (known.rows == 1 and two_fit(known)):
            known = self.footprints[kind] = measure(two_fit)
            if self.watch is not None:
                self.watch.note(trial(known.rows, known))
        return partial(peak, footprint=known)

    def fitting(self, wanted: int, together: int, peak: Callable[[int], int], name: str, at_once: int) -> int:
        """As many rows as are wanted, or as the limit leaves; `at_once` are the most that the next pass can have.

        Raises:
            MemoryLimit: not even `together` fit.
        """
        if self.limit is None:
            return wanted
        sizes = range(wanted - wanted % together, together - 1, -together)  # whole groups
        rows = next((rows for rows in sizes if peak(rows) <= self.limit), None)
        if rows is None:
            least = in_mib(peak(together))
            what = "one row" if together == 1 else f"{together} rows that must go together"
            instead = ["smaller groups, Factored(group=...)"] * (together > 1)
            instead += [f"fewer inputs at once than {self.inputs}"] * ((self.inputs or 1) > 1) + ["smaller inputs"]
            raise MemoryLimit(
                f"A call with {what} through {name} takes about {least} MiB, but `memory_limit` is "
                f"{self.limit / _MIB:.4g} MiB. Write memory_limit='{least}MiB' or more, or take "
                f"{', or '.join(instead)}."
            )
        if self.watch is not None:
            hear = self.watch.plan if self.telling else self.watch.note
            hear(peak(max(min(rows, at_once), together)))
        return rows

"""Work done ahead on one thread: while the network runs, the noise of the next micro-batch is drawn."""

from collections.abc import Callable, Hashable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

import numpy as np

__all__ = ["Ahead"]


class Ahead:
    """Makes arrays by their name; those that were asked for in time are ready, or being made, when they are taken.

    What is made does not depend on whether it was asked for. NumPy's generators do not hold the interpreter's lock.
    """

    def __init__(self, make: Callable[..., np.ndarray]) -> None:
        self._make = make
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="pellucid-noise")
        self._waiting: dict[Hashable, Future[np.ndarray]] = {}

    def ask(self, name: Hashable) -> None:
        """Begin to make this one."""
        self._waiting[name] = self._worker.submit(self._make, name)

    def take(self, name: Hashable) -> np.ndarray:
        """The array of that name."""
        waiting = self._waiting.pop(name, None)
        return self._make(name) if waiting is None else waiting.result()

    def __enter__(self) -> "Ahead":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._worker.shutdown(wait=True, cancel_futures=True)

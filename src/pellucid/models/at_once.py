"""Pieces of work that wait for somebody else, several at once, in threads that nobody waits for after Ctrl-C.

The threads of concurrent.futures are waited for when Python ends, however long that takes; these are daemons.
"""

import queue
import threading
from collections.abc import Callable, Sequence
from typing import TypeVar

__all__ = ["together"]

_LOOK = 0.2  # seconds; an interrupt that another thread was told of is seen only then

Piece = TypeVar("Piece")
Result = TypeVar("Result")


def together(
    work: Callable[[Piece], Result], pieces: Sequence[Piece], *, at_once: int, stop: threading.Event
) -> list[Result]:
    """The results of each piece, in order. Once one fails `stop` is set, no further one is begun, those that are under
    way are waited for, and the first failure is raised. An interrupt sets `stop` and waits for nobody.
    """
    waiting = queue.SimpleQueue[int]()
    results: dict[int, Result] = {}
    failures: list[Exception] = []
    for i in range(len(pieces)):
        waiting.put(i)

    def worker() -> None:
        try:
            while not stop.is_set():
                i = waiting.get_nowait()
                results[i] = work(pieces[i])
        except queue.Empty:
            pass
        except Exception as error:  # noqa: BLE001  # raised where it is waited for
            failures.append(error)
            stop.set()

    threads = [threading.Thread(target=worker, daemon=True) for _ in range(min(at_once, len(pieces)))]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            while thread.is_alive():
                thread.join(_LOOK)
    except BaseException:
        stop.set()
        raise
    if failures:
        raise failures[0]
    return [results[i] for i in range(len(pieces))]

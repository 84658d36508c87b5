"""A connection that is asked one thing at a time, and never longer than a time in all, whatever the other side does.

The limits of httpx are for each piece that is read, so a server that sends a byte now and then is waited for without
end. Here an exchange has a thread of its own, which is waited for so long and no longer; then the socket is shut, which
ends its wait. The thread is a daemon: one that cannot be ended, as in a look-up of a name, keeps no process alive.
"""

import socket
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from pellucid.errors import ModelError

__all__ = ["MOST_REPLY", "Line", "Reply"]

MOST_REPLY = 64 * 2**20
"""Bytes of a reply."""


@dataclass(frozen=True)
class Reply:
    """What came back."""

    status: int
    headers: Mapping[str, str]
    content: bytes


class _Exchange(threading.Thread):
    """One question and its reply, or why there is none."""

    def __init__(self, line: "Line", method: str, url: str, body: bytes | None) -> None:
        super().__init__(daemon=True)
        self.line, self.question = line, (method, url, body)
        self.reply: Reply | None = None
        self.failure: Exception | None = None
        self.ended = threading.Event()

    def run(self) -> None:
        try:
            self.reply = self.line.exchange(*self.question)
        except Exception as error:  # noqa: BLE001  # raised where the reply is waited for
            self.failure = error
        finally:
            self.line.rested()
            self.ended.set()


class Line:
    """A client of httpx of its own, whose one connection stays open from question to question."""

    def __init__(self, client: Any) -> None:
        self._client = client
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None  # by a number of its own, as TLS takes the first one away
        self._busy = self._over = False

    def ask(self, method: str, url: str, body: bytes | None, seconds: float) -> Reply:
        """The reply, within so many seconds.

        Raises:
            httpx.HTTPError: no whole reply, or not in time; the line is of no use then.
            ModelError: a reply that is too long, or compressed.
        """
        import httpx

        exchange = _Exchange(self, method, url, body)
        self._busy = True
        exchange.start()
        if not exchange.ended.wait(seconds):
            self.close()
            raise httpx.ReadTimeout(f"no whole reply within {seconds:g} s")
        if exchange.failure is not None:
            self.close()
            raise exchange.failure
        assert exchange.reply is not None  # noqa: S101  # one of the two
        return exchange.reply

    def exchange(self, method: str, url: str, body: bytes | None) -> Reply:
        """The reply, however long it takes."""
        trace = {"trace": self._traced}
        with self._client.stream(method, url, content=body, extensions=trace) as response:
            status, refused = response.status_code, response.status_code >= 300
            how = response.headers.get("content-encoding", "").strip().lower()
            if how not in ("", "identity"):  # a few bytes can be gigabytes once they are unpacked
                if not refused:
                    raise ModelError("The reply is compressed, which was not asked for. Let it answer uncompressed.")
                return Reply(status, response.headers, b"")
            content = bytearray()
            for block in response.iter_raw():
                content += block
                if len(content) > MOST_REPLY:
                    raise ModelError(f"The reply is over {MOST_REPLY // 2**20} MiB. Send fewer rows: micro_batch=....")
            return Reply(status, response.headers, bytes(content))

    def close(self) -> None:
        """End the connection, also while a reply is waited for, which is given up then."""
        with self._lock:
            self._over = True
            self._shut()
            rests = not self._busy
        if rests:
            self._client.close()

    def rested(self) -> None:
        """Called once a question is over; only then its client is closed, if that is to be."""
        with self._lock:
            self._busy = False
            over = self._over
        if over:
            self._client.close()

    def _traced(self, event: str, told: Mapping[str, Any]) -> None:
        """Called by httpx at each step."""
        if not event.endswith("connect_tcp.complete"):
            return
        with self._lock:
            self._forget()
            self._socket = told["return_value"].get_extra_info("socket").dup()
            if self._over:
                self._shut()

    def _shut(self) -> None:
        if self._socket is not None:
            with suppress(OSError):  # the other side was first
                self._socket.shutdown(socket.SHUT_RDWR)
            self._forget()

    def _forget(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

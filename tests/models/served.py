"""An endpoint on this machine's own address, which answers as a test says."""

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Asked:
    """A request."""

    method: str
    path: str
    headers: dict[str, str]
    body: Any

    @property
    def rows(self) -> list[Any]:
        return self.body["inputs"]


@dataclass
class Reply:
    """What is sent back; `promised` bytes more than there are, if the server dies in the middle of it."""

    content: Any = None
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    promised: int = 0

    @property
    def bytes(self) -> bytes:
        return self.content if isinstance(self.content, bytes) else json.dumps(self.content).encode()


class Served:
    """The address, what was asked so far, and `answer`, which says what comes back (None: the connection is cut)."""

    def __init__(self, answer: Callable[[Asked], Reply | None]) -> None:
        self.answer, self.asked, self.address = answer, [], ""
        self.over = threading.Event()
        self.connections = 0

    @property
    def rows(self) -> list[Any]:
        """All rows that were asked for, in the plain format."""
        return [row for one in self.asked for row in one.rows]


@contextmanager
def serving(answer: Callable[[Asked], Reply | None]) -> Iterator[Served]:
    served = Served(answer)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True  # head and body are two packets

        def setup(self) -> None:
            served.connections += 1
            super().setup()

        def do_POST(self) -> None:  # the library's names
            body = self.rfile.read(int(self.headers["Content-Length"]))
            self._reply(json.loads(body))

        def do_GET(self) -> None:
            self._reply(None)

        def _reply(self, body: Any) -> None:
            asked = Asked(self.command, self.path, {k.lower(): v for k, v in self.headers.items()}, body)
            served.asked.append(asked)
            reply = served.answer(asked)
            if reply is None:
                self.close_connection = True
                return
            self.send_response_only(reply.status)
            for name, value in reply.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(reply.bytes) + reply.promised))
            self.end_headers()
            self.wfile.write(reply.bytes)
            self.close_connection = reply.promised > 0

        def log_message(self, *told: Any) -> None:
            pass

    class Quiet(ThreadingHTTPServer):
        def handle_error(self, request: Any, client_address: Any) -> None:
            pass  # a client that waits no longer

    with Quiet(("127.0.0.1", 0), Handler) as server:
        served.address = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield served
        finally:
            served.over.set()
            server.shutdown()
            thread.join()


def sums(asked: Asked) -> Reply:
    """Plain: the sum of each row, and minus it."""
    return Reply({"outputs": [[sum(row), -sum(row)] for row in asked.rows]})


class Dripping:
    """The address of a server that is never done; `begun` once it was asked, `hung_up` once a client left."""

    def __init__(self, address: str) -> None:
        self.address, self.begun, self.hung_up, self.over = address, threading.Event(), threading.Event(), False


@contextmanager
def dripping(begins: bytes, goes_on: bytes) -> Iterator[Dripping]:
    """Answers `begins`, and then `goes_on` again and again, ten times a second at the most."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        drips = Dripping(f"http://127.0.0.1:{server.getsockname()[1]}")

        def answer(client: socket.socket) -> None:
            with client:
                client.settimeout(0.05)
                try:
                    client.recv(2**16)
                    client.sendall(begins)
                    drips.begun.set()
                    while not drips.over:
                        client.sendall(goes_on)
                        with suppress(TimeoutError):
                            if not client.recv(2**16):
                                break
                except OSError:
                    pass
                drips.hung_up.set()

        def accept() -> None:
            with suppress(OSError):
                while True:
                    client, _ = server.accept()
                    threading.Thread(target=answer, args=(client,), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        try:
            yield drips
        finally:
            drips.over = True
            server.shutdown(socket.SHUT_RDWR)

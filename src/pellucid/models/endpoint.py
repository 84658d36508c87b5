"""An address that answers requests, however often it takes: what is sent there, when again, and what is never shown."""

import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

from pellucid.core.checks import check_count, check_number
from pellucid.errors import ArgumentError, ModelError
from pellucid.models.connection import Line, Reply
from pellucid.models.secrets import Secrets
from pellucid.models.told import in_short, one_line

__all__ = ["Connection", "Endpoint", "Transport"]

_RETRIED = (429, 502, 503, 504)
_LOOPBACK = re.compile(r"localhost|127(\.\d+){3}|::1")
_SHOWN = 200  # characters of what a server says
_READ = 10_000  # and of what is looked through for that: what is cut in two at its end is not shown
_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_VALUE = re.compile(r"([\x21-\x7e]([\x20-\x7e\t]*[\x21-\x7e])?)?")
_OUR_OWN = {
    *("accept-encoding", "connection", "content-encoding", "content-length", "content-type", "expect", "host"),
    *("keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade"),
}


@dataclass(frozen=True, kw_only=True)
class Transport:
    """How rows reach an endpoint.

    `micro_batch` rows a request (by their bytes if left out, 64 at most), `connections` requests at once, `timeout`
    seconds for a whole reply, however it comes. What is not answered is asked again up to `retries` times, after
    `backoff` seconds, twice that, and so on, or what the endpoint asks for in Retry-After; never after more than
    `longest_wait`.

    Raises:
        ArgumentError: a setting out of range.

    Example:
        >>> import pellucid as pl
        >>> pl.Transport(micro_batch=16, connections=2).timeout
        30.0
    """

    timeout: float = 30.0
    retries: int = 4
    connections: int = 4
    micro_batch: int | None = None
    backoff: float = 0.5
    longest_wait: float = 60.0

    def __post_init__(self) -> None:
        for name in ("timeout", "backoff", "longest_wait"):
            check_number(name, getattr(self, name), 0)
        if self.timeout == 0:
            raise ArgumentError("`timeout` is more than 0 seconds.")
        check_count("retries", self.retries, 0)
        check_count("connections", self.connections)
        if self.micro_batch is not None:
            check_count("micro_batch", self.micro_batch)

    def pause(self, attempt: int, asked: float | None) -> float:
        """The seconds before the next attempt, if the endpoint `asked` for so many."""
        return max(min(self.backoff * 2.0 ** min(attempt, 64), self.longest_wait), asked or 0.0)


class Endpoint:
    """The address, what it wants to know in `headers`, and how it is asked. `shown` is what may be said of it."""

    def __init__(self, url: str, headers: Mapping[str, str] | None, transport: Transport) -> None:
        self._url, self.shown, sent = _address(url)
        self._headers = _checked(headers)
        self._secrets = Secrets(self._headers, urlsplit(self._url).query, sent)
        self.transport = transport
        self.sleep: Callable[[float], object] | None = None  # in place of a wait that can be ended

    @property
    def path(self) -> str:
        """The path of the address."""
        return urlsplit(self._url).path

    def at(self, path: str | None) -> str:
        """The address with another path, or its own."""
        return self._url if path is None else urlsplit(self._url)._replace(path=path).geturl()

    def public(self, text: str) -> str:
        """The text without what the headers and the query of the address hold, should a server repeat it."""
        return self._secrets.masked(text)

    @contextmanager
    def connected(self) -> Iterator["Connection"]:
        """Connections that are kept open, and closed at the end."""
        httpx, parts = _httpx(), urlsplit(self._url)
        own = _LOOPBACK.fullmatch(parts.hostname or "") is not None  # no proxy reaches this machine's own
        verify = httpx.create_ssl_context(trust_env=not own) if parts.scheme == "https" else False

        def line() -> Line:
            return Line(
                httpx.Client(
                    timeout=self.transport.timeout,
                    headers={**self._headers, "Accept-Encoding": "identity", "Content-Type": "application/json"},
                    follow_redirects=False,
                    trust_env=not own,
                    verify=verify,
                )
            )

        connection = Connection(self, line)
        with self._secrets.unlogged():
            try:
                yield connection
            finally:
                connection.close()


class Connection:
    """An endpoint that can be asked now, by several threads at once, each over a line of its own."""

    def __init__(self, endpoint: Endpoint, line: Callable[[], Line]) -> None:
        self.endpoint, self._line = endpoint, line
        self._lock = threading.Lock()
        self._free, self._all = list[Line](), list[Line]()

    def close(self) -> None:
        """Hang up, also where a reply is waited for."""
        with self._lock:
            lines, self._all, self._free = self._all, [], []
        for line in lines:
            line.close()

    def fetch(self, body: bytes | None, path: str | None, stop: threading.Event) -> bytes:
        """The content of the reply to `body` (or to a question without one), after as many attempts as it takes. Once
        `stop` is set there are no more of them.

        Raises:
            ModelError: no answer, a refusal, or a reply that is too long or compressed.
        """
        limit, httpx = self.endpoint.transport, _httpx()
        for attempt in range(limit.retries + 1):
            asked = None
            try:
                reply = self._once(body, path)
                if reply.status < 300:
                    return reply.content
                reason = f"status {reply.status}: {self._words(reply.content.decode(errors='replace'))}"
                self._check_retried(reply, reason)
                asked = _asked_for(reply.headers)
            except httpx.TransportError as error:
                reason = self._words(f"{type(error).__name__}: {error}")
            pause = limit.pause(attempt, asked)
            if pause > limit.longest_wait:
                raise ModelError(f"The endpoint asks to wait {pause:g} s, over longest_wait={limit.longest_wait:g}.")
            if attempt == limit.retries or stop.is_set():
                break
            (self.endpoint.sleep or stop.wait)(pause)
        raise ModelError(f"No answer after {attempt + 1} attempt{'s' * (attempt > 0)}. The last: {reason}.")

    def _once(self, body: bytes | None, path: str | None) -> Reply:
        with self._lock:
            line = self._free.pop() if self._free else self._line()
            if line not in self._all:
                self._all.append(line)
        method = "GET" if body is None else "POST"
        try:
            reply = line.ask(method, self.endpoint.at(path), body, self.endpoint.transport.timeout)
        except BaseException:
            with self._lock:
                self._all = [other for other in self._all if other is not line]
            line.close()
            raise
        with self._lock:
            self._free.append(line)
        return reply

    def _words(self, text: str) -> str:
        """What a server says, as it may be shown: masked before it is cut, since half a secret is not recognised."""
        return one_line(self.endpoint.public(text[:_READ]), _SHOWN).rstrip(".")

    def _check_retried(self, reply: Reply, reason: str) -> None:
        """Raises ModelError unless this status can be another one the next time."""
        if 300 <= reply.status < 400:
            there = self._words(_target(reply.headers.get("location", "")))
            raise ModelError(f"It redirects to {there}, and redirects are not followed. Give that address.")
        if reply.status not in _RETRIED:
            raise ModelError(f"The endpoint refused, {reason}.")


def _target(location: str) -> str:
    """Where a redirect leads, without what may not be shown."""
    try:
        where = urlsplit(location)
    except ValueError:
        return "what is no address"
    return f"{where.scheme}://{where.hostname}{where.path}" if where.hostname else where.path


def _address(url: object) -> tuple[str, str, str]:
    """The address, what of it may be shown (no query, which can hold keys), and its query as it is sent."""
    wrong = "`url` is the address of an endpoint, http://host:port/path or https://..."
    if not isinstance(url, str):
        raise ArgumentError(f"{wrong} Got {type(url).__name__}.")
    if re.search(r"[\x00-\x20\x7f]", url):
        raise ArgumentError(f"{wrong} This one holds blanks or control characters: write them as %20 and so on.")
    httpx = _httpx()
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise ArgumentError(f"{wrong} This one is none ({one_line(str(error), _SHOWN)}).") from None
    if parts.username is not None or parts.password is not None:
        raise ArgumentError("Credentials in an address are shown in many places: leave them out, and give headers=....")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ArgumentError(f"{wrong} Got one of {parts.scheme or 'no scheme'!r} at {parts.hostname or 'no host'!r}.")
    try:
        sent = httpx.URL(url)
        sent.raw_host.decode("ascii").encode("idna")  # what the look-up of its name does
    except (httpx.InvalidURL, ValueError):
        raise ArgumentError(f"{wrong} This one is none: look at its host and its length.") from None
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    shown = f"{parts.scheme}://{host}{'' if port is None else f':{port}'}{parts.path}"
    return parts._replace(fragment="").geturl(), shown, sent.query.decode("ascii", "replace")


def _checked(headers: Mapping[str, str] | None) -> dict[str, str]:
    if headers is not None and not isinstance(headers, Mapping):
        raise ArgumentError(f"`headers` are texts by name, a dict. Got {type(headers).__name__}.")
    given = dict(headers or {})
    for name, value in given.items():
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise ArgumentError(
                f"`headers` are texts by name, letters and hyphens. {in_short(repr(name), 60)} is none."
            )
        if name.lower() in _OUR_OWN:
            raise ArgumentError(f"`headers`: {name} is set by the connection itself. Leave it out.")
        if not isinstance(value, str) or not _VALUE.fullmatch(value):
            raise ArgumentError(
                f"`headers` are texts by name, of one line of ASCII each, without blanks around it. That of {name!r} "
                "is not."
            )
    return given


def _asked_for(headers: Mapping[str, str]) -> float | None:
    """The seconds in Retry-After, which may be a date; the reply's own date is the clock then."""
    text = headers.get("retry-after", "").strip()
    if re.fullmatch(r"\d{1,9}", text):
        return float(text)
    try:
        until = parsedate_to_datetime(text)
        now = parsedate_to_datetime(headers["date"]) if "date" in headers else datetime.now(until.tzinfo)
        return max((until - now).total_seconds(), 0.0)
    except (ValueError, TypeError, OverflowError, IndexError):  # whatever stands there
        return None


def _httpx() -> Any:
    try:
        import httpx
    except ImportError as error:
        raise ModelError(
            "Endpoints are asked with httpx, which is not installed. Install it: pip install 'pellucid[http]'."
        ) from error
    return httpx

"""An address that answers requests, however often it takes: what is sent there, when again, and what is never shown."""

import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from pellucid.core.checks import check_count, check_number
from pellucid.errors import ArgumentError, ModelError

__all__ = ["Connection", "Endpoint", "Transport"]

_MOST_REPLY = 64 * 2**20  # bytes of a reply
_RETRIED = (429, 502, 503, 504)
_LOOPBACK = re.compile(r"localhost|127(\.\d+){3}|::1")
_SHOWN = 200  # characters of what a server says


@dataclass(frozen=True, kw_only=True)
class Transport:
    """How rows reach an endpoint.

    `micro_batch` rows a request (by their bytes if left out), `connections` requests at once, `timeout` seconds for a
    reply. What is not answered is asked again up to `retries` times, after `backoff` seconds, twice that, and so on, or
    what the endpoint asks for in Retry-After; never after more than `longest_wait`.

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
        self._url, self.shown = _address(url)
        self._headers = _checked(headers)
        self._secrets = _secrets(self._headers, self._url)
        self.transport = transport
        self.clock: Callable[[], float] = time.monotonic
        self.sleep: Callable[[float], object] | None = None  # in place of a wait that can be ended
        _httpx()

    @property
    def path(self) -> str:
        """The path of the address."""
        return urlsplit(self._url).path

    def at(self, path: str | None) -> str:
        """The address with another path, or its own."""
        return self._url if path is None else urlsplit(self._url)._replace(path=path).geturl()

    def public(self, text: str) -> str:
        """The text without what the headers and the query of the address hold, should a server repeat it."""
        for secret in self._secrets:
            text = text.replace(secret, "…")
        return text

    @contextmanager
    def connected(self) -> Iterator["Connection"]:
        """Connections that are kept open, and closed at the end."""
        parts = urlsplit(self._url)
        with _httpx().Client(
            timeout=self.transport.timeout,
            headers={**self._headers, "Accept-Encoding": "identity", "Content-Type": "application/json"},
            follow_redirects=False,
            trust_env=not _LOOPBACK.fullmatch(parts.hostname or ""),  # no proxy reaches this machine's own
            verify=parts.scheme == "https",
        ) as client:
            yield Connection(self, client)


class Connection:
    """An endpoint that can be asked now, by several threads at once."""

    def __init__(self, endpoint: Endpoint, client: Any) -> None:
        self.endpoint, self._client = endpoint, client

    def fetch(self, body: bytes | None, path: str | None, stop: threading.Event) -> bytes:
        """The content of the reply to `body` (or to a question without one), after as many attempts as it takes. Once
        `stop` is set there are no more of them.

        Raises:
            ModelError: no answer, a refusal, or a reply that is too long; the text is not yet `public`.
        """
        limit, httpx = self.endpoint.transport, _httpx()
        for attempt in range(limit.retries + 1):
            asked = None
            try:
                status, headers, content = self._once(body, path)
                if status < 300:
                    return content
                reason = f"status {status}: {_line(content.decode(errors='replace'))}"
                _check_retried(status, headers, reason)
                asked = _asked_for(headers)
            except httpx.TransportError as error:
                reason = _line(f"{type(error).__name__}: {error}")
            except httpx.DecodingError as error:
                raise ModelError(f"The reply cannot be decoded: {error}.") from error
            pause = limit.pause(attempt, asked)
            if pause > limit.longest_wait:
                raise ModelError(f"The endpoint asks to wait {pause:g} s, over longest_wait={limit.longest_wait:g}.")
            if attempt == limit.retries or stop.is_set():
                break
            (self.endpoint.sleep or stop.wait)(pause)
        raise ModelError(f"No answer after {attempt + 1} attempt{'s' * (attempt > 0)}. The last: {reason}.")

    def _once(self, body: bytes | None, path: str | None) -> tuple[int, Mapping[str, str], bytes]:
        limit, clock = self.endpoint.transport.timeout, self.endpoint.clock
        begun, method = clock(), "GET" if body is None else "POST"
        with self._client.stream(method, self.endpoint.at(path), content=body) as response:
            content = bytearray()
            for block in response.iter_bytes(2**16):
                content += block
                if len(content) > _MOST_REPLY:
                    raise ModelError(f"The reply is over {_MOST_REPLY // 2**20} MiB. Send fewer rows: micro_batch=....")
                if clock() - begun > limit:
                    raise _httpx().ReadTimeout(f"no whole reply within {limit:g} s")
            return response.status_code, response.headers, bytes(content)


def _check_retried(status: int, headers: Mapping[str, str], reason: str) -> None:
    """Raises ModelError unless this status can be another one the next time."""
    if 300 <= status < 400:
        where = urlsplit(headers.get("location", ""))
        there = f"{where.scheme}://{where.hostname}{where.path}" if where.hostname else where.path
        raise ModelError(f"It redirects to {_line(there)}, and redirects are not followed. Give that address.")
    if status not in _RETRIED:
        raise ModelError(f"The endpoint refused, {reason}.")


def _address(url: object) -> tuple[str, str]:
    """The address, and what of it may be shown: no query, which can hold keys."""
    wrong = "`url` is the address of an endpoint, http://host:port/path or https://..."
    if not isinstance(url, str):
        raise ArgumentError(f"{wrong} Got {type(url).__name__}.")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise ArgumentError(f"{wrong} This one is none ({error}).") from None
    if parts.username is not None or parts.password is not None:
        raise ArgumentError("Credentials in an address are shown in many places: leave them out, and give headers=....")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ArgumentError(f"{wrong} Got one of {parts.scheme or 'no scheme'!r} at {parts.hostname or 'no host'!r}.")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    shown = f"{parts.scheme}://{host}{'' if port is None else f':{port}'}{parts.path}"
    return parts._replace(fragment="").geturl(), shown


def _checked(headers: Mapping[str, str] | None) -> dict[str, str]:
    given = dict(headers or {})
    for name, value in given.items():
        if not isinstance(name, str) or not isinstance(value, str) or not re.fullmatch(r"[\x20-\x7e\t]*", value):
            raise ArgumentError(f"`headers` are texts by name, of one line of ASCII each. {name!r} is not.")
    return given


def _secrets(headers: Mapping[str, str], url: str) -> list[str]:
    """What must not be shown, longest first: header values and their words, and what the query holds."""
    query = urlsplit(url).query
    found = {*headers.values(), query, *(value for _, value in parse_qsl(query))}
    found |= {word for value in headers.values() for word in value.split()}
    return sorted((secret for secret in found if len(secret) > 3), key=len, reverse=True)


def _asked_for(headers: Mapping[str, str]) -> float | None:
    """The seconds in Retry-After, which may be a date; the reply's own date is the clock then."""
    text = headers.get("retry-after", "").strip()
    if re.fullmatch(r"\d{1,9}", text):
        return float(text)
    try:
        until = parsedate_to_datetime(text)
        now = parsedate_to_datetime(headers["date"]) if "date" in headers else datetime.now(until.tzinfo)
        return max((until - now).total_seconds(), 0.0)
    except (ValueError, TypeError):
        return None


def _line(text: str) -> str:
    """What a server says, on one line, without what would act on a terminal."""
    plain = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    plain = plain.rstrip(".")
    return plain if len(plain) <= _SHOWN else plain[: _SHOWN - 1] + "…"


def _httpx() -> Any:
    try:
        import httpx
    except ImportError as error:
        raise ModelError(
            "Endpoints are asked with httpx, which is not installed. Install it: pip install 'pellucid[http]'."
        ) from error
    return httpx

"""What must not be shown of an address and its headers, in every form in which a server or a log may repeat it."""

import html
import json
import logging
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from urllib.parse import quote, quote_plus, unquote, unquote_plus

__all__ = ["Secrets"]

_SHORTEST = 4  # fewer signs stand everywhere


class Secrets:
    """Header values and their words, and what the query of the address holds, also escaped or percent-encoded."""

    def __init__(self, headers: Mapping[str, str], query: str, sent: str) -> None:
        """`query` as it was given, `sent` as it goes over the wire."""
        plain = {*headers.values(), *(word for value in headers.values() for word in value.split())}
        for text in (query, sent):
            plain |= {text, *_values(text)}
        forms = {form(text) for text in plain | {unquote_plus(text) for text in plain} for form in _FORMS}
        longest_first = sorted((form for form in forms if len(form) >= _SHORTEST), key=len, reverse=True)
        self._any = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)", re.IGNORECASE)

    def masked(self, text: str) -> str:
        """The text without any of them."""
        return self._any.sub("…", text)

    @contextmanager
    def unlogged(self) -> Iterator[None]:
        """Keep them out of what httpx logs: it writes whole addresses."""

        def mask(record: logging.LogRecord) -> bool:
            record.msg, record.args = self.masked(record.getMessage()), ()
            return True

        names = [name for name in list(logging.root.manager.loggerDict) if name.split(".")[0] in ("httpx", "httpcore")]
        loggers = [logging.getLogger(name) for name in {"httpx", "httpcore", *names}]  # a filter is of one logger alone
        for logger in loggers:
            logger.addFilter(mask)
        try:
            yield
        finally:
            for logger in loggers:
                logger.removeFilter(mask)


_FORMS: tuple[Callable[[str], str], ...] = (
    str,
    quote,
    lambda text: quote(text, safe=""),
    quote_plus,
    unquote,
    html.escape,
    lambda text: repr(text)[1:-1],
    lambda text: json.dumps(text)[1:-1],
    lambda text: repr(repr(text))[2:-2],  # a text within what is shown as Python writes it
)


def _values(query: str) -> list[str]:
    """The values of a query, or the names of those that have none."""
    pairs = [part.partition("=") for part in re.split("[&;]", query)]
    return [value or name for name, _, value in pairs]

"""What is asked again and when, what is given up, and what of an address may be shown."""

import gzip
import html
import json
import logging
import signal
import sys
import threading
from urllib.parse import quote, quote_plus

import pytest
import torch
from tests.models.served import Reply, dripping, serving, sums

import pellucid as pl
from pellucid.errors import ArgumentError, ModelError
from pellucid.models import connection
from pellucid.models.endpoint import Endpoint

ROWS = torch.tensor([[1.0, 2.0]])


@pytest.fixture
def served():
    with serving(sums) as found:
        yield found


def model(served, **transport):
    """A model of one request at a time, and the pauses that it made."""
    settings = pl.Transport(**{"connections": 1, "backoff": 0.5, **transport})
    found = pl.HTTPModel(f"{served.address}/predict", transport=settings, output="logits")
    found.endpoint.sleep = (pauses := []).append
    return found, pauses


def in_turn(*replies):
    left = list(replies)
    return lambda asked: left.pop(0) if left else sums(asked)


BUSY = Reply("busy", 503)


# What is asked again


@pytest.mark.parametrize("status", [429, 502, 503, 504])
def test_what_passes_is_asked_again_after_growing_pauses(served, status):
    served.answer = in_turn(*[Reply("busy", status)] * 3)
    found, pauses = model(served)
    assert found.predict(ROWS).outputs.tolist() == [[3.0, -3.0]]
    assert pauses == [0.5, 1.0, 2.0]


def test_a_server_that_dies_in_the_middle_or_says_nothing_is_asked_again(served):
    served.answer = in_turn(Reply({"outputs": [[1.0, 2.0]]}, promised=10), None)
    found, pauses = model(served)
    assert found.predict(ROWS).outputs.tolist() == [[3.0, -3.0]]
    assert len(pauses) == 2


@pytest.mark.parametrize(
    ("headers", "pause"),
    [
        ({"Retry-After": "7"}, 7.0),
        ({"Retry-After": "0"}, 0.5),
        ({"Retry-After": "soon"}, 0.5),
        ({"Retry-After": "-3"}, 0.5),
        ({"Retry-After": "Mon, 01 Jan 2024 00:00:00 +99999999999999999999"}, 0.5),
        ({"Retry-After": "Wed, 21 Oct 2015 07:28:09 GMT", "Date": "Wed, 21 Oct 2015 07:28:00 GMT"}, 9.0),
        ({"Retry-After": "Wed, 21 Oct 2015 07:28:09 GMT"}, 0.5),
        ({"Retry-After": "Wed, 21 Oct 2015 07:28:09 GMT", "Date": "today"}, 0.5),
    ],
)
def test_a_pause_that_the_server_asks_for_is_made(served, headers, pause):
    served.answer = in_turn(Reply("slowly", 429, headers))
    found, pauses = model(served)
    found.predict(ROWS)
    assert pauses == [pause]


def test_no_pause_of_ones_own_is_longer_than_the_longest():
    transport = pl.Transport(longest_wait=3)
    assert [transport.pause(attempt, None) for attempt in (0, 1, 2, 3, 4, 2000)] == [0.5, 1, 2, 3, 3, 3]


def test_a_wait_of_its_own_ends_when_another_request_fails(served):
    served.answer = lambda asked: BUSY
    found, _ = model(served)
    stop = threading.Event()
    stop.set()
    with (
        found.endpoint.connected() as connection,
        pytest.raises(ModelError, match=r"No answer after 1 attempt. The last"),
    ):
        connection.fetch(b"{}", None, stop)


# What is given up


@pytest.mark.doors
def test_after_the_last_attempt_the_reason_is_told(served):
    served.answer = lambda asked: BUSY
    found, pauses = model(served, retries=2)
    with pytest.raises(ModelError, match=r'No answer after 3 attempts. The last: status 503: "busy".$'):
        found.predict(ROWS)
    assert len(served.asked) == 3
    assert pauses == [0.5, 1.0]


@pytest.mark.doors
def test_a_pause_that_is_too_long_is_told_and_not_made(served):
    served.answer = lambda asked: Reply("come tomorrow", 429, {"Retry-After": "86400"})
    found, pauses = model(served)
    with pytest.raises(ModelError, match="asks to wait 86400 s, over longest_wait=60"):
        found.predict(ROWS)
    assert not pauses


@pytest.mark.doors
@pytest.mark.parametrize("status", [400, 401, 404, 422, 500])
def test_a_refusal_is_told_with_the_servers_words_shortened(served, status):
    served.answer = lambda asked: Reply(b"rows of \x1b[31m3\n" + b"x" * 5000, status)
    found, pauses = model(served)
    with pytest.raises(ModelError, match=rf"The endpoint refused, status {status}: rows of \[31m3 xxx") as told:
        found.predict(ROWS)
    assert len(str(told.value)) < 500
    assert not pauses


@pytest.mark.doors
@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_redirects_are_not_followed(served, status):
    with serving(sums) as other:
        served.answer = lambda asked: Reply("", status, {"Location": f"{other.address}/there?token=abcd"})
        found, _ = model(served)
        with pytest.raises(ModelError, match=r"It redirects to http://127.0.0.1/there, and redirects are not") as told:
            found.predict(ROWS)
        assert not other.asked
        assert "abcd" not in str(told.value)


@pytest.mark.doors
def test_a_reply_that_is_too_long_is_not_read_to_its_end(served, monkeypatch):
    monkeypatch.setattr(connection, "MOST_REPLY", 1000)
    served.answer = lambda asked: Reply(b" " * 1001)
    with pytest.raises(ModelError, match=r"The reply is over 0 MiB. Send fewer rows"):
        model(served)[0].predict(ROWS)
    served.answer = lambda asked: Reply(b'{"outputs": [[1, 2]]}'.ljust(1000))
    assert model(served)[0].predict(ROWS).outputs.tolist() == [[1, 2]]


@pytest.mark.doors
def test_a_server_that_is_silent_is_not_waited_for(served):
    def answer(asked):
        served.over.wait(10)

    served.answer = answer
    found, _ = model(served, timeout=0.05, retries=1)
    with pytest.raises(ModelError, match=r"No answer after 2 attempts. The last: ReadTimeout"):
        found.predict(ROWS)


HEAD = b"HTTP/1.1 200 OK\r\n"


@pytest.mark.doors
@pytest.mark.parametrize(
    ("begins", "goes_on"),
    [
        (HEAD + b"Content-Length: 100000\r\n\r\n", b" "),
        (HEAD + b"X-Long: ", b"a"),
        (b"", b"HTTP/1.1 102 Processing\r\n\r\n"),
    ],
)
def test_the_timeout_is_for_the_whole_reply_however_it_drips(begins, goes_on):
    with dripping(begins, goes_on) as drips:
        found, _ = model(drips, timeout=0.2, retries=0)
        with pytest.raises(ModelError, match=r"ReadTimeout: no whole reply within 0\.2 s"):
            found.predict(ROWS)
        assert drips.hung_up.wait(5)


@pytest.mark.doors
def test_an_interrupt_waits_for_no_reply():
    with dripping(HEAD + b"Content-Length: 100000\r\n\r\n", b" ") as drips:
        found, _ = model(drips, timeout=60, connections=2)
        threading.Thread(target=lambda: drips.begun.wait(5) and signal.raise_signal(signal.SIGINT)).start()
        with pytest.raises(KeyboardInterrupt):
            found.predict(torch.eye(2))
        assert drips.hung_up.wait(5)


def test_no_thread_of_an_endpoint_keeps_a_process_alive(served):
    alive = []
    served.answer = lambda asked: alive.extend(threading.enumerate()) or sums(asked)
    before = set(threading.enumerate())
    found, _ = model(served)
    found.predict(ROWS)
    own = [thread for thread in alive if thread not in before and "process_request" not in thread.name]
    assert len(own) == 2
    assert all(thread.daemon for thread in own)


@pytest.mark.doors
def test_a_server_that_is_not_there_is_told():
    with serving(sums) as gone:
        pass
    found, pauses = model(gone, retries=1)
    with pytest.raises(ModelError, match=r"No answer after 2 attempts. The last: ConnectError"):
        found.predict(ROWS)
    assert pauses == [0.5]


@pytest.mark.doors
@pytest.mark.parametrize("how", ["gzip", "gzip, gzip", "deflate", "br", "identity, gzip"])
def test_a_compressed_reply_is_refused_unread(served, how):
    packed = gzip.compress(b'{"outputs": [[1, 2]]}')
    served.answer = lambda asked: Reply(packed, headers={"Content-Encoding": how})
    with pytest.raises(ModelError, match="The reply is compressed, which was not asked for"):
        model(served)[0].predict(ROWS)
    served.answer = in_turn(Reply(packed, 503, {"Content-Encoding": how}))
    assert model(served)[0].predict(ROWS).outputs.tolist() == [[3.0, -3.0]]


def test_identity_is_no_compression(served):
    served.answer = lambda asked: Reply({"outputs": [[1, 2]]}, headers={"Content-Encoding": "identity"})
    assert model(served)[0].predict(ROWS).outputs.tolist() == [[1, 2]]


# What is not shown

KEY = 'sk-live/0123456789\\"abcdefghijklmnop+qrstuvwxyz'


@pytest.mark.doors
@pytest.mark.parametrize("before", range(100, 210, 10))
@pytest.mark.parametrize("status", [200, 401])
def test_half_a_secret_is_not_shown(served, before, status):
    served.answer = lambda asked: Reply(b"x" * (before - 150 * (status == 200)) + KEY.encode(), status)
    found = pl.HTTPModel(f"{served.address}/predict", headers={"Authorization": f"Bearer {KEY}"})
    with pytest.raises(ModelError, match=r"refused|Expected JSON") as told:
        found.predict(ROWS)
    assert "sk-l" not in str(told.value)


@pytest.mark.doors
@pytest.mark.parametrize(
    "form", [str, quote, quote_plus, repr, json.dumps, html.escape, lambda key: quote(key, safe="").lower()]
)
def test_a_secret_is_masked_in_every_form(form):
    of_headers = Endpoint("http://host/", {"X-Key": KEY}, pl.Transport())
    of_the_query = Endpoint(f"http://host/?key={quote(KEY, safe='')}&other=a%2fbc", None, pl.Transport())
    for found in (of_headers, of_the_query):
        assert "live" not in found.public(form(KEY)).lower()
    assert of_the_query.public("a%2Fbc or a/bc") == "… or …"
    assert Endpoint("http://host/?onlykey", None, pl.Transport()).public("the onlykey") == "the …"


def test_the_query_is_not_logged(served, caplog):
    found = pl.HTTPModel(f"{served.address}/predict?key=hiddenvalue", output="logits")
    with caplog.at_level(logging.DEBUG):
        found.predict(ROWS)
    assert "HTTP Request: POST" in caplog.text
    assert "hiddenvalue" not in caplog.text
    assert not any(logging.getLogger(name).filters for name in ("httpx", "httpcore.http11"))


def test_no_proxy_is_asked_for_this_machine(served, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    assert model(served)[0].predict(ROWS).outputs.tolist() == [[3.0, -3.0]]


# Doors


@pytest.mark.doors
@pytest.mark.parametrize(
    ("url", "words"),
    [
        (3, "Got int"),
        ("ftp://host/x", "Got one of 'ftp'"),
        ("file:///etc/passwd", "Got one of 'file'"),
        ("host/predict", "Got one of 'no scheme'"),
        ("http:///predict", "'no host'"),
        ("http://host:port/", "This one is none"),
        ("http://host:99999/", "This one is none"),
        ("http://host/a b", "holds blanks or control characters"),
        ("http://host/\x00", "holds blanks or control characters"),
        ("http://host/?k=\ns3cret", "holds blanks or control characters"),
        ("http://a..b/", "look at its host"),
        (f"http://{'a' * 70}.example/", "look at its host"),
        ("http://\u2603.example/", "look at its host"),
        ("http://host/" + "a" * 70000, "look at its host and its length"),
        ("http://me:s3cret@host/", "Credentials in an address are shown in many places"),
    ],
)
def test_what_is_no_address_is_refused(url, words):
    with pytest.raises(ArgumentError, match=words) as told:
        Endpoint(url, None, pl.Transport())
    assert "s3cret" not in str(told.value)


def test_of_an_address_the_query_is_not_shown():
    found = Endpoint("https://[::1]:8000/a/b?key=4711#part", {"X-Key": "topsecret"}, pl.Transport())
    assert found.shown == "https://[::1]:8000/a/b"
    assert found.at(None) == "https://[::1]:8000/a/b?key=4711"
    assert found.at("/c") == "https://[::1]:8000/c?key=4711"
    assert found.public("4711 or topsecret, or key=4711") == "… or …, or …"


@pytest.mark.doors
@pytest.mark.parametrize(
    "headers",
    [
        *({"X": "a\r\nY: b"}, {"X": 3}, {3: "x"}, {"X": "ä"}, {"X": " s3cret"}, {"X": "s3cret "}, {"X": "s3\0cret"}),
        *({"X Y": "x"}, {"": "x"}, {"Ä": "x"}, {"X:": "x"}, {"X\n": "x"}, ["X"]),
    ],
)
def test_headers_are_texts_of_one_line(headers):
    with pytest.raises(ArgumentError, match="`headers` are texts by name") as told:
        Endpoint("http://host/", headers, pl.Transport())
    assert "s3cret" not in str(told.value)


@pytest.mark.doors
@pytest.mark.parametrize(
    "name", ["Content-Length", "transfer-encoding", "HOST", "Connection", "Accept-Encoding", "Content-Type", "TE"]
)
def test_headers_of_the_connection_are_its_own(name):
    with pytest.raises(ArgumentError, match=f"`headers`: {name} is set by the connection itself"):
        Endpoint("http://host/", {name: "5"}, pl.Transport())


@pytest.mark.doors
@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"timeout": 0}, "`timeout` is more than 0"),
        ({"timeout": "3"}, "`timeout` is a finite number"),
        ({"retries": -1}, "`retries` is a whole number, 0 or more"),
        ({"connections": 0}, "`connections` is a whole number, 1 or more"),
        ({"micro_batch": 0}, "`micro_batch` is a whole number, 1 or more"),
        ({"backoff": -1}, "`backoff` is a finite number"),
        ({"longest_wait": float("inf")}, "`longest_wait` is a finite number"),
    ],
)
def test_settings_out_of_range_are_refused(settings, words):
    with pytest.raises(ArgumentError, match=words):
        pl.Transport(**settings)


@pytest.mark.doors
def test_without_httpx_it_is_said_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "httpx", None)
    with pytest.raises(ModelError, match=r"pip install 'pellucid\[http\]'"):
        pl.HTTPModel("http://127.0.0.1:1/")

"""What is asked again and when, what is given up, and what of an address may be shown."""

import sys
import threading

import pytest
import torch
from tests.models.served import Reply, serving, sums

import pellucid as pl
from pellucid.errors import ArgumentError, ModelError
from pellucid.models import endpoint
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
    with pytest.raises(ModelError, match=r'No answer after 3 attempts. The last: status 503: "busy". 0 of'):
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
    monkeypatch.setattr(endpoint, "_MOST_REPLY", 1000)
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


@pytest.mark.doors
def test_the_timeout_is_for_the_whole_reply(served):
    found, _ = model(served, timeout=5, retries=0)
    found.endpoint.clock = iter(range(0, 1000, 6)).__next__
    with pytest.raises(ModelError, match="ReadTimeout: no whole reply within 5 s"):
        found.predict(ROWS)


@pytest.mark.doors
def test_a_server_that_is_not_there_is_told():
    with serving(sums) as gone:
        pass
    found, pauses = model(gone, retries=1)
    with pytest.raises(ModelError, match=r"No answer after 2 attempts. The last: ConnectError"):
        found.predict(ROWS)
    assert pauses == [0.5]


@pytest.mark.doors
def test_a_reply_in_a_broken_encoding_is_told(served):
    served.answer = lambda asked: Reply(b"no gzip", headers={"Content-Encoding": "gzip"})
    with pytest.raises(ModelError, match="The reply cannot be decoded"):
        model(served)[0].predict(ROWS)


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
@pytest.mark.parametrize("headers", [{"X": "a\r\nY: b"}, {"X": 3}, {3: "x"}, {"X": "ä"}])
def test_headers_are_texts_of_one_line(headers):
    with pytest.raises(ArgumentError, match="`headers` are texts by name"):
        Endpoint("http://host/", headers, pl.Transport())


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

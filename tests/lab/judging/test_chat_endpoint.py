"""Tests that an endpoint is asked as OpenAI's is, and that whatever it does becomes an answer or one clear error."""

from __future__ import annotations

import socket
import time

import pytest

from loraga.lab.errors import SettingsError
from loraga.lab.judging import chat_endpoint
from loraga.lab.judging.chat_endpoint import Endpoint, EndpointError
from tests.lab.judge_server import Reply, refuses, says, serving

SECRET = "sk-not-for-anybody"


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)


def ask(url, seconds=5.0):
    return Endpoint(url, "gpt-4", seconds).ask("be a judge", "rate this", 100)


@pytest.mark.parametrize("suffix", ["", "/", "/chat/completions"])
def test_a_question_is_asked_in_openais_format(suffix):
    with serving(lambda *_: says("Rating: [[7]]")) as server:
        assert ask(server.url + suffix) == "Rating: [[7]]"
        ((path, headers, content),) = server.got
    assert path == "/v1/chat/completions"
    assert headers["Authorization"] == f"Bearer {SECRET}"
    assert content == {
        "model": "gpt-4",
        "messages": [{"role": "system", "content": "be a judge"}, {"role": "user", "content": "rate this"}],
        "temperature": 0,
        "max_tokens": 100,
    }


def test_without_a_key_none_is_sent(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY")
    with serving(lambda *_: says("x")) as server:
        ask(server.url)
        assert "Authorization" not in server.got[0][1]


MANNERS = {
    "too many requests": (refuses(429, "slow down"), r"HTTP 429 \(slow down\)", True, False),
    "an error of its own": (refuses(500), r"HTTP 500 \(no\)", True, False),
    "no gateway": (Reply(b"<html>bad</html>", 502), r"HTTP 502 \(Bad Gateway\)", True, False),
    "a wrong key": (refuses(401, f"no {SECRET}"), r"HTTP 401 \(no \*\*\*\); OPENAI_API_KEY is not", False, True),
    "no such model": (refuses(404, "no model gpt-4"), r"HTTP 404 \(no model gpt-4\)", False, True),
    "a wrong question": (refuses(400, "too long"), r"HTTP 400 \(too long\)", False, False),
    "no JSON": (Reply(b"<html>"), "no chat completion", True, False),
    "no choices": (Reply(b'{"choices": []}'), "no chat completion", True, False),
    "another shape": (Reply(b'[1, 2]'), "no chat completion", True, False),
    "brackets without end": (Reply(b"[" * 100_000), "no chat completion", True, False),
    "a number": (says(7), "no text", True, False),
    "nothing said": (says(None), r"refused \(no content\)", True, False),
    "a refusal": (says(None, refusal="I will not"), r"refused \(I will not\)", True, False),
    "a message of control characters": (refuses(400, "\x1b[2J\ud800\n x"), r"HTTP 400 \(\?\[2J\? x\)$", False, False),
    "a long message": (refuses(400, "x" * 5000), rf"HTTP 400 \({'x' * 200}\)$", False, False),
    "hanging up": (None, "no connection", True, False),
    "half an answer": (Reply(b"{", headers={"Content-Length": "100"}), "no c", True, False),
    "silence": (Reply(b"", seconds=10), "no answer within 0.3 s", True, False),
    "drops": (Reply(b"x" * 40, seconds=0.25, parts=40), "no answer within 0.3 s", True, False),
}  # fmt: skip


@pytest.mark.parametrize("manner", MANNERS)
def test_an_endpoint_without_manners_is_one_error_that_says_whether_to_ask_again(manner):
    reply, message, again, hopeless = MANNERS[manner]
    start = time.monotonic()
    with serving(lambda *_: reply) as server:
        with pytest.raises(EndpointError, match=message) as caught:
            ask(server.url, seconds=0.3)
        assert time.monotonic() - start < 5  # of the 10 s that drops and silence would take
    assert (caught.value.again, caught.value.hopeless) == (again, hopeless)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_the_key_does_not_follow_a_redirect(status):
    with serving(lambda *_: says("here")) as other, serving(lambda *_: refuses(status, Location=other.url)) as server:
        with pytest.raises(EndpointError, match=f"HTTP {status}") as caught:
            ask(server.url)
        assert caught.value.hopeless
        assert other.got == []


def test_an_answer_without_end_is_not_read_to_its_end(monkeypatch):
    monkeypatch.setattr(chat_endpoint, "LARGEST", 1000)
    with serving(lambda *_: says("x" * 2000)) as server, pytest.raises(EndpointError, match="more than 1000 bytes"):
        ask(server.url)


def test_the_endpoint_says_how_long_to_wait():
    for header, wait in (
        ("7", 7),
        ("0.5", 0.5),
        ("Wed, 21 Oct 2026 07:28:00 GMT", 0),
        ("-3", 0),
        ("inf", float("inf")),
    ):
        with serving(lambda *_, header=header: refuses(429, **{"Retry-After": header})) as server:
            with pytest.raises(EndpointError, match="429") as caught:
                ask(server.url)
            assert caught.value.wait == wait


def test_nobody_there_is_an_error_that_may_pass():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(EndpointError, match=r"no connection.*refused") as caught:
        ask(f"http://127.0.0.1:{port}/v1")
    assert caught.value.again


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("api.openai.com/v1", "is to begin with https://"),
        ("file:///etc/passwd", "is to begin with https://"),
        ("https://", "is to begin with https://"),
        ("https://host:port/v1", "is no address"),
        ("https://user:word@host/v1", "a key goes into the environment variable OPENAI_API_KEY"),
        ("https://host/v1?api_key=word", "a key goes into the environment variable OPENAI_API_KEY"),
        ("http://judge.example.com/v1", "would be sent to judge.example.com for everybody"),
    ],
)
def test_a_wrong_address_is_refused(url, message):
    with pytest.raises(SettingsError, match=message) as caught:
        Endpoint(url, "gpt-4").check()
    assert "word" not in str(caught.value)


def test_right_addresses_are_taken(monkeypatch):
    for url in ("https://api.openai.com/v1", "http://localhost:8000/v1", "http://127.0.0.1/v1"):
        Endpoint(url, "gpt-4").check()
    monkeypatch.delenv("OPENAI_API_KEY")
    Endpoint("http://judge.example.com/v1", "gpt-4").check()

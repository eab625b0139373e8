"""Requests to servers that are busy, wrong or strange: a real server on this machine that answers as it is told."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from megavlm.megatron_mm.data.tokenizer import SHIPPED
from megavlm.megatron_mm.evaluation.engines import endpoint
from megavlm.megatron_mm.evaluation.engines.base import Ask, Unanswered
from megavlm.megatron_mm.evaluation.engines.endpoint import Endpoint
from megavlm.megatron_mm.evaluation.engines.openai import EndpointEngine
from megavlm.platform.errors import ConfigError, InputError, MegaVLMError

KEY = "sk-a-key-of-the-tests"
Answer = tuple[int, Any]
MODELS = {"data": [{"id": "m", "max_model_len": 64}]}


class Told(ThreadingHTTPServer):
    """Answers with what `reply(path, body)` gives: a status and JSON, or bytes."""

    daemon_threads = True

    def __init__(self, reply: Callable[[str, Any], Answer]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.reply, self.seen, self.keys = reply, [], set()
        self.url = f"http://127.0.0.1:{self.server_port}/v1"


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers.get("content-length", 0))) or "null")
        self.server.keys.add(self.headers.get("authorization"))
        self.server.seen.append((self.path, body))
        status, told = self.server.reply(self.path, body)
        data = told if isinstance(told, bytes) else json.dumps(told).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_POST = do_GET

    def log_message(self, *words: Any) -> None:
        pass


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Told]]:
    monkeypatch.setattr(endpoint, "FIRST_WAIT", 0.01)
    monkeypatch.setenv("THE_KEY", KEY)
    started: list[Told] = []

    def make(reply: Callable[[str, Any], Answer]) -> Told:
        server = Told(reply)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        started.append(server)
        return server

    yield make
    for server in started:
        server.shutdown()
        server.server_close()


def test_a_busy_server_is_asked_again_and_a_hopeless_one_is_not(start: Callable[..., Told]) -> None:
    left = [503, 429]
    server = start(lambda path, body: (left.pop(), {}) if left else (200, {"ok": 1}))
    asking = Endpoint(server.url, "THE_KEY")
    assert asking.post("/x", {"a": 1}) == {"ok": 1} and len(server.seen) == 3
    assert server.keys == {f"Bearer {KEY}"}
    server.reply = lambda path, body: (500, {})
    with pytest.raises(MegaVLMError, match="HTTP 500"):
        asking.post("/x", {})
    assert len(server.seen) == 3 + endpoint.TRIES
    server.reply = lambda path, body: (403, {})
    with pytest.raises(ConfigError, match="HTTP 403"):
        asking.post("/x", {})
    assert len(server.seen) == 4 + endpoint.TRIES


def test_a_key_is_never_told(start: Callable[..., Told]) -> None:
    server = start(lambda path, body: (400, {"error": f"what is {KEY}?"}))
    for status, kind in ((400, InputError), (401, ConfigError), (404, ConfigError)):
        server.reply = lambda path, body, status=status: (status, {"error": f"what is {KEY}?"})
        with pytest.raises(kind) as told:
            Endpoint(server.url, "THE_KEY").get("/models")
        assert KEY not in str(told.value) and str(status) in str(told.value)


def test_a_redirect_takes_the_key_nowhere(start: Callable[..., Told]) -> None:
    other = start(lambda path, body: (200, {}))
    server = start(lambda path, body: (307, {}))
    with pytest.raises(InputError, match="HTTP 307"):
        Endpoint(server.url, "THE_KEY").get("/models")
    assert not other.seen


@pytest.mark.parametrize("url", ["localhost:8000", "file:///etc/passwd", "http://", ""])
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="no address"):
        Endpoint(url)


def test_a_server_that_insists_on_a_token_gets_it_from_then_on(start: Callable[..., Told]) -> None:
    def reply(path: str, body: Any) -> Answer:
        if path.endswith("/models"):
            return 200, MODELS
        if body["max_tokens"] == 0:
            return 400, {"error": "max_tokens must be at least 1"}
        choices = []
        for index, ids in enumerate(body["prompt"]):
            own = [None, *(-token / 100 for token in ids[1:]), -9.0]
            top = [None, *({"x": -0.07, "own": value} for value in own[1:])]
            choices.append({"index": index, "logprobs": {"token_logprobs": own, "top_logprobs": top}})
        return 200, {"choices": choices[::-1]}

    server = start(reply)
    engine = EndpointEngine(server.url, "m", tokenizer=SHIPPED / "mini", at_once=1)
    pairs = [([1, 2], [3, 4]), ([1, 2], [5, 9]), ([1, 2], [8]), ([1, 2], [6])]
    wanted = [(-0.07, True), (-0.14, False), (-0.08, False), (-0.06, True)]
    for (own, greedy), (logprob, best) in zip(engine.log_likelihoods(pairs), wanted, strict=True):
        assert own == pytest.approx(logprob) and greedy == best
    assert [body["max_tokens"] for path, body in server.seen if "completions" in path][:2] == [0, 1]
    assert all(body["max_tokens"] == 1 for path, body in server.seen[2:])


def test_strange_answers_are_named(start: Callable[..., Told]) -> None:
    server = start(lambda path, body: (200, MODELS))
    engine = EndpointEngine(server.url, "m", tokenizer=SHIPPED / "mini")
    server.reply = lambda path, body: (200, {"choices": [{"index": 0, "text": "x", "logprobs": None}]})
    with pytest.raises(ConfigError, match="without log-probabilities"):
        engine.log_likelihoods([([1, 2], [3])])
    for told in ({"choices": []}, [], {"choices": [{}]}):
        server.reply = lambda path, body, told=told: (200, told)
        with pytest.raises(ConfigError, match="1 prompts with 0 choices"):
            engine.log_likelihoods([([1, 2], [3])])
    ask = Ask(({"role": "user", "content": "Hi"},))
    for told in (b"<html>", {"choices": []}, {"choices": [{"message": None}]}, [], {}):
        server.reply = lambda path, body, told=told: (200, told)
        (answer,) = engine.generate([ask])
        assert isinstance(answer, Unanswered) and "answer" in answer.problem
    server.reply = lambda path, body: (400, {"error": "too long"})
    assert "too long" in engine.generate([ask])[0].problem
    begun = Ask((*ask.messages, {"role": "assistant", "content": "Well"}))
    assert "begun" in engine.generate([begun])[0].problem
    with pytest.raises(ConfigError, match="how many tokens"):
        server.reply = lambda path, body: (200, {"data": [{"id": "m"}]})
        EndpointEngine(server.url, "m")

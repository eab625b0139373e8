"""What the server does not do, over HTTP: strangers, URLs, files, too much of anything. It goes on serving."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import time
from collections.abc import Callable
from typing import Any

import httpx2
import pytest


def said(url: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}]}


PNG = "data:image/png;base64,"
BODIES: dict[str, tuple[int, str, Callable[[Any], dict[str, Any]]]] = {
    "file": (400, "no other is opened", lambda t: said("file:///etc/passwd")),
    "http": (400, "no other is opened", lambda t: said("http://169.254.169.254/latest/meta-data")),
    "https": (400, "no other is opened", lambda t: said("https://example.org/a.png")),
    "path": (400, "no other is opened", lambda t: said("/etc/passwd")),
    "not base64": (400, "no base64", lambda t: said(PNG + "%%%")),
    "broken image": (400, "truncated", lambda t: said(t.data_url(t.picture(1)[:-300]))),
    "no image": (400, "image 0", lambda t: said(PNG + "aGVsbG8=")),
    "empty image": (400, "image 0", lambda t: said(PNG)),
    "large image": (400, "more than 40000 pixels", lambda t: said(t.data_url(t.picture(1, 210, 200)))),
    "another model": (404, "no model 'gpt'", lambda t: {"model": "gpt"}),
    "unknown field": (400, "tools", lambda t: {"tools": []}),
    "penalty": (400, "presence_penalty", lambda t: {"presence_penalty": 1}),
    "several": (400, "n:", lambda t: {"n": 2}),
    "hot": (400, "temperature", lambda t: {"temperature": 3}),
    "too many tokens": (400, "more than this server's 200", lambda t: {"max_tokens": 201}),
    "no messages": (400, "messages", lambda t: {"messages": []}),
    "assistant last": (400, "the user last", lambda t: {"messages": [{"role": "assistant", "content": "hi"}]}),
    "twice": (400, "in turns", lambda t: {"messages": [{"role": "user", "content": "hi"}] * 2}),
    "tool role": (400, "role is one of", lambda t: {"messages": [{"role": "tool", "content": "hi"}]}),
    "an image mark": (400, "cannot hold <image>", lambda t: {"messages": [{"role": "user", "content": "<image>"}]}),
    "too long": (400, "2048 positions", lambda t: {"messages": [{"role": "user", "content": "word " * 3000}]}),
}


@pytest.mark.parametrize("case", BODIES)
def test_a_bad_request_costs_itself_alone(server: Any, tools: Any, case: str) -> None:
    status, message, change = BODIES[case]
    response = server.post("/chat/completions", tools.asked("What is this?") | change(tools))
    error = response.json()["error"]
    assert response.status_code == status and message in error["message"]
    assert set(error) == {"message", "type", "param", "code"}
    assert server.post("/chat/completions", tools.asked("Hm?", max_tokens=1)).status_code == 200


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt": ""}, "no tokens"),
        ({"prompt": [1, 9999]}, "token id 9999"),
        ({"prompt": [[1], [-1]]}, "token id -1"),
        ({"prompt": ["x"] * 21}, "from 1 to 20 prompts"),
        ({"max_tokens": 0}, "asks for nothing"),
        ({"logprobs": 21}, "logprobs"),
        ({"prompt": [3] * 2048}, "2048 positions"),
    ],
)
def test_a_completion_that_cannot_be(server: Any, tools: Any, change: dict[str, Any], message: str) -> None:
    response = server.post("/completions", {"model": tools.NAME, "prompt": "hello"} | change)
    assert response.status_code == 400 and message in response.json()["error"]["message"]


@pytest.mark.parametrize("given", ["", "Bearer wrong", "Basic a-token-of-the-tests-5f1c29e0b7", "Bearer \xe4"])
def test_who_has_not_the_token_stays_out(server: Any, tools: Any, given: str) -> None:
    headers = {"Authorization": given.encode("latin-1")} if given else {}
    for path in ("/chat/completions", "/completions"):
        response = httpx2.post(f"{server.url}{path}", json=tools.asked("hello"), headers=headers)
        assert response.status_code == 401 and response.json()["error"]["code"] == "invalid_api_key"
    assert httpx2.get(f"{server.url}/models", headers=headers).status_code == 401


def test_bodies_that_are_too_large_or_no_json(server: Any, tools: Any) -> None:
    assert server.post("/chat/completions", b"{", headers={"Content-Type": "application/json"}).status_code == 400
    assert server.post("/chat/completions", b"[1]", headers={"Content-Type": "application/json"}).status_code == 400
    assert server.post("/chat/completions", b"{}", headers={"Content-Type": "text/plain"}).status_code == 415
    assert server.post("/chat/completions", tools.asked("x" * 300_000)).status_code == 413
    nested = b"[" * 100_000
    assert server.post("/chat/completions", nested, headers={"Content-Type": "application/json"}).status_code == 400


def test_a_body_without_a_length_is_cut_off_too(server: Any, tools: Any) -> None:
    host, port = server.url.removeprefix("http://").removesuffix("/v1").split(":")
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {tools.TOKEN}\r\n"
    head += "Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    with socket.create_connection((host, int(port)), timeout=20) as line:
        line.sendall(head.encode())
        for _ in range(40):
            line.sendall(b"2710\r\n" + b" " * 10_000 + b"\r\n")
        assert b" 413 " in line.recv(4096).split(b"\r\n")[0]


def test_a_web_page_that_calls_itself_this_machine_is_sent_away(server: Any, tools: Any) -> None:
    response = server.post("/chat/completions", tools.asked("hello"), headers={"Host": "evil.example:80"})
    assert response.status_code == 403
    assert httpx2.options(f"{server.url}/chat/completions").headers.get("access-control-allow-origin") is None


def test_paths_that_are_not_there_answer_in_the_same_shape(server: Any) -> None:
    for response, status in (
        (httpx2.get(f"{server.url}/nothing"), 404),
        (httpx2.get(f"{server.url}/completions"), 405),
    ):
        assert response.status_code == status and response.json()["error"]["type"] == "invalid_request_error"


def test_more_at_once_than_it_takes(server: Any, tools: Any) -> None:
    async def all_at_once() -> list[httpx2.Response]:
        body, headers = tools.asked("hello", max_tokens=150), {"Authorization": f"Bearer {tools.TOKEN}"}
        limits = httpx2.Limits(max_connections=None)
        async with httpx2.AsyncClient(headers=headers, timeout=60, limits=limits) as client:
            posts = (client.post(f"{server.url}/chat/completions", json=body) for _ in range(60))
            return await asyncio.gather(*posts)

    found = asyncio.run(all_at_once())
    answered = [response for response in found if response.status_code == 200]
    refused = [response for response in found if response.status_code == 429]
    assert len(answered) + len(refused) == 60 and len(answered) >= 20 and refused
    assert refused[0].headers["retry-after"] == "1" and refused[0].json()["error"]["type"] == "rate_limit_error"
    assert len({response.json()["choices"][0]["message"]["content"] for response in answered}) == 1


def test_the_log_has_a_line_for_each_request_and_neither_token_nor_texts(server: Any, tools: Any) -> None:
    secret = "zanzibar in the morning"
    before = server.log.read_text().count("\n")
    answer = server.post("/chat/completions", tools.asked(secret, max_tokens=3)).json()
    assert server.post("/chat/completions", tools.asked(secret) | {"n": 2}).status_code == 400
    log = server.log.read_text()
    assert log.count("\n") == before + 2
    one, other = log.splitlines()[-2:]
    assert f"chat 200 {answer['usage']['prompt_tokens']} + 3 tokens, 0 tiles length" in one and "chat 400" in other
    assert tools.TOKEN not in log and "zanzibar" not in log and answer["choices"][0]["message"]["content"] not in log


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_hangs_up_frees_its_place(server: Any, tools: Any, stream: bool) -> None:
    before = server.log.read_text()
    body = json.dumps(tools.asked("Go on.", max_tokens=200, stream=stream, stop=["\0"])).encode()
    host, port = server.url.removeprefix("http://").removesuffix("/v1").split(":")
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {tools.TOKEN}\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    with socket.create_connection((host, int(port)), timeout=20) as line:
        line.sendall(head.encode() + body)
        if stream:
            assert line.recv(10)
    deadline = time.monotonic() + 20
    while not (new := server.log.read_text().removeprefix(before)).endswith("\n"):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    told = re.search(r"chat (\w+) \d+ \+ (\d+) tokens", new)
    assert told is not None and told[1] == ("200" if stream else "gone") and int(told[2]) < 200
    assert "Traceback" not in new and "Exception" not in new
    assert server.post("/chat/completions", tools.asked("Hm?", max_tokens=1)).status_code == 200

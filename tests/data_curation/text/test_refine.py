"""Refinement against an HTTP server that answers, breaks off, fails, talks nonsense and cuts answers short."""

from __future__ import annotations

import collections
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from megavlm.platform.errors import ConfigError
from megavlm.platform.registry import load_object
from megavlm.platform.shards import ShardReader

ROWS = 24
KEY = "sk-do-not-write-this-down"


class Endpoint(ThreadingHTTPServer):
    """`/v1/models`, and `/v1/chat/completions`, which echoes the last turn; how it fails is written in the question."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.bodies: list[dict] = []
        self.asked: collections.Counter[str] = collections.Counter()
        self.keys: set[str | None] = set()
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def note(self, body: dict, key: str | None) -> tuple[str, int]:
        """The question, and how often it has been asked."""
        with self.lock:
            question = body["messages"][-1]["content"]
            self.bodies.append(body)
            self.keys.add(key)
            self.asked[question] += 1
            return question, self.asked[question]


class Handler(BaseHTTPRequestHandler):
    server: Endpoint

    def log_message(self, *_: object) -> None:
        """Nothing on the terminal."""

    def do_GET(self) -> None:
        self.send(b'{"data": []}')

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        question, times = self.server.note(body, self.headers.get("Authorization"))
        first = times == 1
        if "never" in question or ("busy" in question and first):
            self.send(b"overloaded", 503)
        elif "drop" in question and first:
            self.connection.close()
        elif "nonsense" in question and first:
            self.send(b"<html>")
        else:
            choice = {"message": {"content": f"Refined: {question}"}, "finish_reason": "stop"}
            choice |= {"finish_reason": "length"} if "long" in question else {}
            self.send(json.dumps({"choices": [choice]}).encode())

    def send(self, data: bytes, status: int = 200) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@pytest.fixture
def endpoint():
    server = Endpoint()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


MANNERS = ("", "drop", "busy", "nonsense", "long", "never")


@pytest.fixture
def recipe(tmp_path, endpoint):
    (tmp_path / "text" / "set").mkdir(parents=True)
    rows = [
        {
            "messages": [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": f"first {i}"},
                {"role": "assistant", "content": f"answer {i}"},
                {"role": "user", "content": f"question {i} {MANNERS[i % len(MANNERS)]}".strip()},
                {"role": "assistant", "content": "old answer"},
            ]
        }
        for i in range(ROWS)
    ]
    rows.append({"messages": [*rows[0]["messages"][:4], {"role": "assistant", "content": "another old answer"}]})
    (tmp_path / "text" / "set" / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    asking = {"attempts": 3, "backoff_seconds": 0.0, "concurrency": 4, "patience_seconds": 5.0}
    refine = {"model": "m", "endpoints": [endpoint.url], "asking": asking, "cache": str(tmp_path / "cache")}
    stages = {"text_ingest": {}, "text_refine": refine, "text_export": {}}
    source = {"kind": "text", "path": str(tmp_path / "text"), "sets": {"set": "messages"}}
    executor = {"name": "in_process", "workers": 0}
    return {"name": "test", "curation": {"source": source, "stages": stages, "executor": executor}}


def test_last_answers_are_written_anew_and_what_cannot_be_had_is_dropped(recipe, curate, endpoint, tmp_path):
    (line,) = (line for line in curate(recipe)["funnel"] if line["stage"] == "text_refine")
    each = ROWS // len(MANNERS)
    assert (line["kept"], line["dropped"]) == (ROWS + 1 - 2 * each, {"answer_cut": each, "refine_failed": each})
    reader = ShardReader(str(tmp_path / "run" / "export"))
    for number in range(len(reader)):
        messages = reader.read(number).json()["messages"]
        assert [message["role"] for message in messages] == ["system", *["user", "assistant"] * 2]
        assert messages[2]["content"].startswith("answer "), "earlier turns stay"
        assert messages[-1]["content"] == f"Refined: {messages[-2]['content']}"
    retried = {"drop": 2, "busy": 2, "nonsense": 2, "never": 3}
    for question, times in endpoint.asked.items():
        # two conversations that ask the same are one question
        assert times == retried.get(question.split()[-1], 1), question
    assert len(endpoint.asked) == ROWS


def test_what_is_sent_is_the_conversation_without_its_last_answer_and_no_picture(recipe, curate, endpoint):
    curate(recipe)
    for body in endpoint.bodies:
        assert [message["role"] for message in body["messages"]] == ["system", "user", "assistant", "user"]
        assert all(isinstance(message["content"], str) for message in body["messages"])
        assert (body["model"], body["temperature"], body["max_tokens"]) == ("m", 0.0, 2048)


def test_another_run_with_the_cache_asks_only_for_what_failed(recipe, curate, endpoint):
    first = curate(recipe)
    endpoint.asked.clear()
    again = curate(recipe, out="again")
    assert {question.split()[-1] for question in endpoint.asked} == {"never"}
    counts = [[(line["stage"], line["kept"], line["dropped"]) for line in run["funnel"]] for run in (first, again)]
    assert counts[0] == counts[1]


def test_refined_answers_are_decontaminated(recipe, curate, tmp_path):
    (tmp_path / "bench.jsonl").write_text(json.dumps({"question": "Refined: question 6"}))
    options = {"folder": str(tmp_path), "benchmarks": ["bench"], "columns": {"bench": ["question"]}}
    stages = recipe["curation"]["stages"]
    export = stages.pop("text_export")
    stages |= {"text_decontaminate": options, "text_export": export}
    (line,) = (line for line in curate(recipe)["funnel"] if line["stage"] == "text_decontaminate")
    assert line["dropped"] == {"benchmark_leak": 1}


def test_the_key_is_sent_and_stands_in_no_file(recipe, curate, endpoint, tmp_path, monkeypatch):
    monkeypatch.setenv("REFINE_API_KEY", KEY)
    recipe["curation"]["stages"]["text_refine"]["asking"]["api_key_env"] = "REFINE_API_KEY"
    curate(recipe)
    assert endpoint.keys == {f"Bearer {KEY}"}
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and KEY.encode() in path.read_bytes()]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"endpoints": []}, "endpoints"),
        ({"endpoints": ["ftp://host/v1"]}, "is no endpoint"),
        ({"parameters": {"messages": []}}, "'messages' is not for parameters to set"),
    ],
)
def test_options_that_cannot_be_are_refused(options, said):
    stage = load_object("megavlm.data_curation.text.stages.refine:TextRefine")
    with pytest.raises(ConfigError) as error:
        stage.parse({"model": "m", "endpoints": ["http://host/v1"]} | options, where="text_refine")
    assert said in str(error.value)

"""How `megavlm serve` begins and ends: refusals before torch, TERM while it answers, and over two ranks."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import pytest

from megavlm.platform.cli import main


def ended_while_answering(server: Any, tools: Any) -> tuple[str, int]:
    """The answer whose first piece was there when TERM came, and the exit code."""
    body = tools.asked("Tell me everything.", max_tokens=200, stop=["\0"], stream=True)
    headers = {"Authorization": f"Bearer {tools.TOKEN}"}
    said = ""
    with httpx2.stream("POST", f"{server.url}/chat/completions", json=body, headers=headers, timeout=60) as response:
        events = (json.loads(line[6:]) for line in response.iter_lines() if line.startswith("data: {"))
        for number, event in enumerate(events):
            said += event["choices"][0]["delta"]["content"]
            if number == 1:
                server.process.send_signal(signal.SIGTERM)
    return said, server.process.wait(timeout=60)


def test_term_finishes_what_is_being_answered(start_server: Callable[..., Any], here: Any, tools: Any) -> None:
    server = start_server()
    said, code = ended_while_answering(server, tools)
    assert said == here.answer("Tell me everything.", tokens=200)
    assert code == 0, server.log.read_text()[-3000:]
    assert "Traceback" not in server.log.read_text()


@pytest.mark.multiprocess
def test_two_ranks_answer_as_one_and_end_together(start_server: Callable[..., Any], here: Any, tools: Any) -> None:
    server = start_server("--pp", "2")
    picture = tools.picture(2)
    bodies = [tools.asked("What is this?", picture), tools.asked("And this?"), tools.asked("Hm?", stop=["e"])]
    with ThreadPoolExecutor(3) as pool:
        told = [r.json()["choices"][0] for r in pool.map(lambda body: server.post("/chat/completions", body), bodies)]
    texts = [choice["message"]["content"] for choice in told]
    assert texts[:2] == [here.answer("What is this?", picture), here.answer("And this?")]
    assert texts[2] == here.answer("Hm?").split("e")[0]
    score = {"model": tools.NAME, "prompt": [5, 6, 7, 8], "max_tokens": 0, "echo": True, "logprobs": 1}
    found = server.post("/completions", score).json()["choices"][0]["logprobs"]["token_logprobs"][1:]
    wanted = here.logprobs([5, 6, 7, 8])
    assert found == pytest.approx([wanted[k, token].item() for k, token in enumerate([6, 7, 8])], abs=1e-5)
    time.sleep(1)  # ranks that hear nothing still live
    said, code = ended_while_answering(server, tools)
    assert said == here.answer("Tell me everything.", tokens=200)
    assert code == 0, server.log.read_text()[-3000:]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--host", "0.0.0.0"], "there is no token"),
        (["--host", "::"], "there is no token"),
        (["--token-file", "missing"], "cannot read the token"),
        (["--token-file", "short"], "16 or more"),
        (["--port", "70000"], "no port"),
        (["--max-batch", "0"], "--max-batch 0"),
        (["--tp", "3"], "parallel.tp 3"),
        (["--stage", "nothing"], "nothing"),
    ],
)
def test_refuses_before_it_loads(
    stage_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any, words: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MEGAVLM_SERVE_TOKEN", raising=False)
    (tmp_path / "short").write_text("hunter2\n")
    assert main(["serve", str(stage_run), *words]) == 2
    said = capsys.readouterr().err
    assert message in said and "hunter2" not in said


def test_a_dry_run_tells_what_it_would_serve(stage_run: Path, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "token").write_text("0123456789abcdef\n")
    words = ["serve", str(stage_run), "--host", "0.0.0.0", "--token-file", str(tmp_path / "token"), "--dry-run"]
    assert main([*words, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["model"], told["stage"], told["dry_run"]) == ("run/sft", "sft", True)


def test_a_port_that_is_taken(server: Any, stage_run: Path, capfd: Any) -> None:
    port = server.url.removesuffix("/v1").rpartition(":")[2]
    started = time.monotonic()
    assert main(["serve", str(stage_run), "--port", port]) == 2
    assert f"cannot listen at 127.0.0.1:{port}" in capfd.readouterr().err and time.monotonic() - started < 10

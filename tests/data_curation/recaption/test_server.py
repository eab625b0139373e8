"""Servers of our own: started when needed, waited for, started anew when they die, ended with everything they began."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from megavlm.data_curation.recaption.ask import EndpointCaptioner, Manners
from megavlm.data_curation.recaption.endpoint import Secret
from megavlm.data_curation.recaption.page import Page
from megavlm.data_curation.recaption.server import GPUS, Replica, Server, stop_all
from megavlm.data_curation.run import CurationRun
from megavlm.data_curation.stages.recaption import Recaption
from megavlm.platform.errors import ConfigError, MegaVLMError

# A server of the protocol that takes its time to load, starts a process of its own, and dies after so many answers.
PROGRAM = """
import http.server, json, os, pathlib, subprocess, sys, time
port, folder, lives = int(sys.argv[1]), pathlib.Path(sys.argv[2]), int(sys.argv[3])
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"])
(folder / f"started-{os.getpid()}").write_text(f"{child.pid} {os.environ.get('CUDA_VISIBLE_DEVICES')} {sys.argv[4:]}")
print("loading", flush=True)
time.sleep(0.2)
answered = 0
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.say({"status": "ok"})
    def do_POST(self):
        global answered
        self.rfile.read(int(self.headers["content-length"]))
        if answered == lives:
            print("out of memory", flush=True)
            os._exit(3)
        answered += 1
        choice = {"message": {"role": "assistant", "content": f"A dog, says {port}."}, "finish_reason": "stop"}
        self.say({"choices": [choice]})
    def say(self, what):
        data = json.dumps(what).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)
http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""


def command(folder: Path, lives: int, *more: str) -> list[str]:
    return [sys.executable, "-c", PROGRAM, "{port}", str(folder), str(lives), *more]


def started(folder: Path) -> dict[int, list[str]]:
    """Process id of each server that was ever started -> [its child's, its GPUs, its further arguments]."""
    return {int(path.name[8:]): path.read_text().split(" ", 2) for path in folder.glob("started-*")}


def lives(process: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{process}/stat").read_text().split()[2] != "Z"
    return False


def all_gone(folder: Path, seconds: float = 5.0) -> bool:
    deadline = time.monotonic() + seconds
    processes = [process for server, (child, *_) in started(folder).items() for process in (server, int(child))]
    while any(map(lives, processes)) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not any(map(lives, processes))


def captioner(replicas: list[Replica], seconds: float = 20.0) -> EndpointCaptioner:
    manners = Manners(4, 10, 5.0, 0.01, 0.1, seconds, "/health", proxies=False)
    return EndpointCaptioner(replicas, "m", {}, manners, Secret(), lambda: stop_all(replicas))


def asked(one: EndpointCaptioner, page: Page[Any]) -> dict[str, Any]:
    [done] = one.answer(iter([page]))
    return done.answers()


def tree(raw: Path, new: dict[str, Any]) -> dict[str, Any]:
    curation = {
        "source": {"path": str(raw)},
        "stages": {"ingest": {}, "recaption": new},
        "executor": {"name": "in_process", "workers": 0},
    }
    return {"name": "recaption-test", "seed": 1, "curation": curation}


def test_replicas_share_the_work_come_back_when_they_die_and_end_with_their_children(page, tmp_path):
    server = Server(command=command(tmp_path, 12), gpus=0, replicas=2, restarts=9)
    replicas = server.start("m", tmp_path / "logs", "server")
    assert not started(tmp_path), "nothing runs before something is asked"
    one = captioner(replicas)
    answers = asked(one, page(60))
    assert len(answers) == 60 and all(getattr(answer, "text", "") for answer in answers.values())
    assert len(started(tmp_path)) >= 5, "12 answers a life"
    assert min(replica.starts for replica in replicas) >= 2
    log = (tmp_path / "logs" / "server-0.log").read_text()
    assert log.count("loading") >= replicas[0].starts - 1  # the last one may have just begun
    assert "out of memory" in log
    running = [server for server in started(tmp_path) if lives(server)]
    assert running
    one.close()
    assert all_gone(tmp_path)
    one.close()


def test_a_server_that_always_dies_fails_the_task_with_its_last_words(page, tmp_path):
    dies = [sys.executable, "-c", "import sys; print('no such model'); sys.exit(5)", "{port}"]
    replicas = Server(command=dies, gpus=0, restarts=2).start("m", tmp_path, "server")
    with pytest.raises(MegaVLMError, match="(?s)died 3 times.*no such model"):
        asked(captioner(replicas), page(3))
    assert (tmp_path / "server-0.log").read_text().count("no such model") == 3


def test_a_server_that_never_gets_well_is_not_waited_for_for_ever_and_ended(page, tmp_path):
    hangs = PROGRAM.replace("time.sleep(0.2)", "time.sleep(100)")
    server = Server(command=[sys.executable, "-c", hangs, "{port}", str(tmp_path), "9"], gpus=0)
    with pytest.raises(MegaVLMError, match="no endpoint answers"):
        asked(captioner(server.start("m", tmp_path, "server"), seconds=3), page(3))
    assert started(tmp_path) and all_gone(tmp_path)


def test_a_command_that_is_not_there_says_so(page, tmp_path):
    replicas = Server(command=["no-such-program", "{port}"], gpus=0, restarts=0).start("m", tmp_path, "server")
    with pytest.raises(MegaVLMError, match="no-such-program"):
        asked(captioner(replicas), page(3))


def test_arguments_are_filled_in_and_pass_through_no_shell(page, tmp_path, monkeypatch):
    monkeypatch.setenv(GPUS, "4,5,6,7")
    hostile = f"$(touch {tmp_path}/ran); `id` {{gpus}}"
    server = Server(command=command(tmp_path, 99, '{"image": {gpus}}', "{model}", hostile), gpus=2, replicas=2)
    replicas = server.start("a model", tmp_path, "server")
    one = captioner(replicas)
    asked(one, page(40))
    one.close()
    told = sorted(words[1:] for words in started(tmp_path).values())
    arguments = str(['{"image": 2}', "a model", hostile.replace("{gpus}", "2")])
    assert told == [["4,5", arguments], ["6,7", arguments]]
    assert not (tmp_path / "ran").exists()


def test_options_that_cannot_work_are_refused(tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="port"):
        Server.parse({"command": ["vllm", "serve"]})
    monkeypatch.setenv(GPUS, "0")
    with pytest.raises(ConfigError, match="2 replicas of 1 GPUs each"):
        Server(command=["x", "{port}"], replicas=2).start("m", tmp_path, "server")


def test_kill_minus_9_of_who_started_it_ends_the_server_too(tmp_path):
    program = (
        "import sys, time; from pathlib import Path\n"
        "from megavlm.data_curation.recaption.server import Server\n"
        "[one] = Server(command=sys.argv[2:], gpus=0).start('m', Path(sys.argv[1]), 'server')\n"
        "one.revive(); print('started', flush=True); time.sleep(100)\n"
    )
    words = [sys.executable, "-c", program, str(tmp_path), *command(tmp_path, 9)]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline()
    while not started(tmp_path):
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert all_gone(tmp_path)


def test_the_stage_starts_its_servers_and_leaves_none(tools, tmp_path, curate):
    for shard in range(3):
        samples = [tools.raw(f"{shard}{n}", tools.encode(tools.photo(10 * shard + n, 28, 28))) for n in range(4)]
        tools.write_shard(tmp_path / "raw", f"{shard:05d}", samples)
    server = {"command": command(tmp_path, 7), "gpus": 0, "restarts": 5}
    new: dict[str, Any] = {"model": "m", "server": server}
    assert curate(tree(tmp_path / "raw", new))["funnel"][-1]["kept"] == 12
    assert len(started(tmp_path)) == 2, "one for all shards, and one more since it died after 7 answers"
    assert all_gone(tmp_path)
    logs = list((tmp_path / "run" / "attempts").rglob("recaption-server-*.log"))
    assert len(logs) == 1 and "out of memory" in logs[0].read_text()
    rows = [row for path in (tmp_path / "run" / "recaption").glob("*") for row in pq.read_table(path).to_pylist()]
    assert all(row["caption"].startswith("A dog, says ") for row in rows)

    # nothing left to ask: no server is started
    new["asking"] = {"concurrency": 3}
    assert curate(tree(tmp_path / "raw", new))["funnel"][-1]["kept"] == 12 and len(started(tmp_path)) == 2


def test_samples_that_are_alike_are_one_question(tools, tmp_path, curate, endpoint):
    image, other = (tools.encode(tools.photo(seed, 28, 28)) for seed in (1, 2))
    samples = [
        tools.raw("a", image),
        tools.raw("b", image),
        tools.raw("c", other),
        tools.raw("d", image, caption="else"),
    ]
    tools.write_shard(tmp_path / "raw", "00000", samples)
    (tmp_path / "prompt.txt").write_text("What is it? $alt_text")
    front = endpoint()
    new = {"model": "m", "endpoints": [front.url], "prompt": str(tmp_path / "prompt.txt")}
    assert curate(tree(tmp_path / "raw", new))["funnel"][-1]["kept"] == 4
    assert sum(front.seen.questions.values()) == len(front.seen.questions) == 3


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({}, "nobody"),
        ({"endpoints": ["http://x/v1"], "transformers": {}}, "endpoints and transformers"),
        ({"endpoints": ["http://x/v1"], "parameters": {"stream": True}}, "stream"),
        ({"transformers": {}, "prompt": "no/such/file"}, "no/such/file"),
    ],
)
def test_recipes_that_cannot_work_are_refused(options, what):
    with pytest.raises(ConfigError, match=what):
        Recaption.parse({"model": "m"} | options, where="recaption")


def test_a_prompt_edited_under_a_run_is_noticed(tmp_path, endpoint, tools, curate):
    prompt = tmp_path / "prompt.txt"
    prompt.write_text("Describe.")
    tools.write_shard(tmp_path / "raw", "00000", [tools.raw("0", tools.encode(tools.photo(1, 28, 28)))])
    front = endpoint()
    recipe = tree(tmp_path / "raw", {"model": "m", "prompt": str(prompt), "endpoints": [front.url]})
    curate(recipe)
    prompt.write_text("Describe it.")
    run = CurationRun.open(tmp_path / "run")  # looking at the run goes on to work
    with pytest.raises(ConfigError, match="not the one"), run.config.stages["recaption"].at_work(run, [0]):
        pass
    curate(recipe)
    assert sum(front.seen.questions.values()) == 2, "another prompt is another question"

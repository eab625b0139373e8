"""What both stages that ask a model have in common: what redoes them, what they note, and servers of their own."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from megavlm.data_curation.funnel import notes
from megavlm.data_curation.run import CurationRun
from megavlm.data_curation.stages.recaption import Recaption
from megavlm.data_curation.text.stages.refine import TextRefine
from megavlm.platform.errors import ConfigError

Tree = dict[str, Any]


def recipe(source: Tree, stages: Tree) -> Tree:
    executor = {"name": "in_process", "workers": 0}
    return {"name": "asked", "seed": 1, "curation": {"source": source, "stages": stages, "executor": executor}}


@pytest.fixture
def raw(tools, tmp_path) -> Path:
    for shard in range(2):
        images = [tools.encode(tools.photo(10 * shard + number, 28, 28)) for number in range(3)]
        samples = [tools.raw(f"{shard}{number}", image) for number, image in enumerate(images)]
        tools.write_shard(tmp_path / "raw", f"{shard:05d}", samples)
    return tmp_path / "raw"


@pytest.fixture
def text(tmp_path) -> Path:
    folder = tmp_path / "text" / "set"
    folder.mkdir(parents=True)
    rows = [[("user", f"photo of dog {n}"), ("assistant", f"old answer {n}")] for n in range(5)]
    talks = [{"messages": [{"role": role, "content": said} for role, said in row]} for row in rows]
    (folder / "a.jsonl").write_text("\n".join(map(json.dumps, talks)))
    return tmp_path / "text"


@pytest.mark.parametrize("stage", ["recaption", "text_refine"])
def test_who_is_asked_and_how_redoes_nothing_and_what_is_asked_does(raw, text, curate, endpoint, tmp_path, stage):
    fronts = [endpoint(), endpoint()]
    source = (
        {"path": str(raw)} if stage == "recaption" else {"kind": "text", "path": str(text), "sets": {"set": "messages"}}
    )
    ingest = "ingest" if stage == "recaption" else "text_ingest"

    def asked(**options: Any) -> int:
        """Questions asked by a run with these options; its tasks that were done again."""
        before = sum(sum(front.seen.questions.values()) for front in fronts)
        stages = {ingest: {}, stage: {"model": "m", "endpoints": [fronts[0].url]} | options}
        curate(recipe(source, stages))
        return sum(sum(front.seen.questions.values()) for front in fronts) - before

    def versions() -> list[int]:
        return [json.loads(line)["version"] for line in (tmp_path / f"run/ledger/{stage}/all.jsonl").open()]

    first = asked()
    once = versions()
    hello = [sys.executable, "-c", "print('hello')", "{port}"]
    for options in (
        {"endpoints": [fronts[1].url]},
        {"asking": {"concurrency": 2, "attempts": 1}},
        {"cache": str(tmp_path / "elsewhere")},
        {"endpoints": [], "server": {"command": hello, "gpus": 0}},
    ):
        assert asked(**options) == 0 and versions() == once, options
    for options in ({"parameters": {"max_tokens": 3}}, {"model": "n"}):
        assert asked(**options) == first, options
    if stage == "recaption":
        assert asked(prompt="densefusion") == first and asked(max_side=20) == first
    assert asked() == 0, "the cache knows those of the beginning"
    assert min(versions()) > max(once), "but the sidecars were written anew"


def test_in_this_process_is_another_result_than_served_and_only_the_precision_counts():
    def decisive(**options: Any) -> Tree:
        return Recaption.parse({"model": "m"} | options, where="recaption").decisive()

    served, inside = decisive(endpoints=["http://host/v1"]), decisive(transformers={})
    assert served == decisive(server={"command": ["x", "{port}"]}) != inside
    assert inside == decisive(transformers={"batch_size": 3, "device": "cpu"})
    assert inside != decisive(transformers={"dtype": "float32"})


def test_the_ledger_notes_what_the_server_counted(raw, curate, proxy, tiny_server, tmp_path):
    front = proxy()
    asked = {"model": tiny_server.model, "endpoints": [front.url], "parameters": {"max_tokens": 6, "temperature": 0.0}}
    tree = recipe({"path": str(raw)}, {"ingest": {}, "recaption": asked | {"asking": {"health": "/health"}}})
    curate(tree)
    told = [json.loads(line)["usage"] for line in front.seen.answers]
    lines = (tmp_path / "run" / "ledger" / "recaption" / "all.jsonl").read_text().splitlines()
    counted = [json.loads(line)["facts"]["notes"] for line in lines]
    for name in ("prompt_tokens", "completion_tokens"):
        assert sum(note[name] for note in counted) == sum(usage[name] for usage in told) > 0
    assert [(note["asked"], note["known"], note["requests"]) for note in counted] == [(3, 0, 3)] * 2
    log = "".join(path.read_text() for path in (tmp_path / "run" / "attempts").rglob("*recaption*.log"))
    assert "recaption: 6 answers" in log, "a person who looks sees how many, and how many a second"


@pytest.mark.multiprocess
def test_refining_asks_a_real_server_that_it_starts_itself(text, curate, tiny_server, tmp_path):
    script = Path(__file__).parent / "serve_tiny.py"
    server = {"command": [sys.executable, str(script), "{model}", "{port}"], "gpus": 0}
    asked = {"model": tiny_server.model, "server": server, "parameters": {"max_tokens": 6, "temperature": 0.0}}
    source = {"kind": "text", "path": str(text), "sets": {"set": "messages"}}
    curate(recipe(source, {"text_ingest": {}, "text_refine": asked}))
    [sidecar] = (tmp_path / "run" / "text_refine").glob("*.parquet")
    rows = pq.read_table(sidecar).to_pylist()
    assert len(rows) == 5
    for number, row in enumerate(rows):
        messages = [{"role": "user", "content": f"photo of dog {number}"}]
        said = tiny_server.ask({"model": tiny_server.model, "messages": messages, **asked["parameters"]})
        assert (row["finish_reason"], (row["answer"] or "").strip()) == (
            said["finish_reason"],
            said["message"]["content"].strip(),
        )
    run = CurationRun.open(tmp_path / "run")
    assert notes(run, "text_refine")["completion_tokens"] > 0
    assert list((tmp_path / "run" / "attempts").rglob("text_refine-server-*.log"))


@pytest.mark.parametrize("options", [{}, {"endpoints": ["http://x/v1"], "server": {"command": ["x", "{port}"]}}])
def test_refining_asks_in_exactly_one_way(options):
    with pytest.raises(ConfigError, match="exactly one of endpoints, server"):
        TextRefine.parse({"model": "m"} | options, where="text_refine")

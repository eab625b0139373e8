"""Stages of other people, and the text stages: decided anew, let stand, or refused with a clear word."""

from __future__ import annotations

import json

import pytest

THEIRS = '''
import pyarrow as pa

from megavlm.data_curation.stages.base import GlobalStage, ShardStage


def table(keys, kept):
    reasons = pa.array([None if yes else "odd" for yes in kept], pa.string())
    return pa.table({"key": keys, "keep": kept, "reason": reasons, "detail": pa.nulls(len(kept), pa.string())})


class Wide(ShardStage):
    """From what filter measured."""

    needs = ("filter",)
    from_sidecars = True
    least: int = 100

    def judge(self, run):
        def judge(name):
            rows = run.gather(self.name, name, {"filter": ["width"]}).to_pylist()
            return table([row["key"] for row in rows], [row["width"] >= self.least for row in rows]), {}

        return judge


class Looks(ShardStage):
    """It might look at images for all that anybody knows."""

    needs = ("filter",)
    ending: str = "1"

    def judge(self, run):
        def judge(name):
            keys = run.survivors(self.name, name).to_pylist()
            return table(keys, [not key.endswith(self.ending) for key in keys]), {}

        return judge


class Whole(GlobalStage):
    """It looks at all samples at once."""

    def decide(self, run):
        names = run.plan.names
        keys = {name: run.survivors(self.name, name).to_pylist() for name in names}
        return {name: table(of, [True] * len(of)) for name, of in keys.items()}, {}
'''


@pytest.fixture
def with_theirs(tools, crawl, curate, tmp_path, monkeypatch):
    """make(*names, select=N) -> a run in which these stages come after select."""
    (tmp_path / "their_stages.py").write_text(THEIRS)
    monkeypatch.syspath_prepend(str(tmp_path))

    def make(*names: str):
        tree = tools.recipe(crawl[0], select={"nearest": 5})
        stages = tree["curation"]["stages"]
        export = stages.pop("export")
        tree["curation"]["stages"] = stages | {f"their_stages:{name}": {} for name in names} | {"export": export}
        curate(tree)
        return tmp_path / "run"

    return make


def lines_of(told):
    return {line["stage"]: line for line in told["what_if"][0]["funnel"]}


def test_a_stage_that_says_it_judges_from_sidecars_is_decided_anew(with_theirs, ask, capsys):
    run = with_theirs("Wide")
    told = ask(run, "their_stages:Wide.least=130")
    line = lines_of(told)["their_stages:Wide"]
    assert line["dropped"] == {"odd": line["in"]} and line["in"] > 0
    assert lines_of(told)["export"]["kept"] == 0


def test_a_looser_choice_sends_on_what_another_stage_never_saw(with_theirs, ask, copy_of, really):
    run = with_theirs("Looks", "Wide")
    lines = lines_of(ask(run, "select.nearest=9"))
    new = lines["select"]["kept"] - lines_of(ask(run, "select.nearest=5"))["select"]["kept"]
    assert new > 0 and lines["their_stages:Looks"]["not_measured"] == new
    assert lines["their_stages:Looks"]["decided"] == "stands"
    assert lines["their_stages:Wide"]["in"] == lines["their_stages:Looks"]["kept"]
    assert [name for name, line in lines.items() if line["not_measured"]] == ["their_stages:Looks"]


def test_on_fewer_samples_its_verdicts_stand_as_a_run_would_repeat_them(with_theirs, ask, copy_of, really):
    run = with_theirs("Looks", "Wide")
    then = ask(run, "select.nearest=2")["what_if"][0]["funnel"]
    real = really(copy_of(run), "select.nearest=2")
    for mine, line in zip(then, real, strict=True):
        assert all(mine[key] == line[key] for key in ("stage", "in", "kept", "dropped"))
    assert not any(line["not_measured"] for line in then)


def test_its_own_options_are_refused_when_it_does_not_say_so(with_theirs, ask):
    error = ask(with_theirs("Looks"), "their_stages:Looks.ending=2", code=2)["error"]
    assert "'their_stages:Looks' is not decided anew" in error["what"]


def test_one_that_looks_at_everything_cannot_stand_on_other_samples(with_theirs, ask):
    error = ask(with_theirs("Whole"), "select.nearest=2", code=2)["error"]
    assert error["where"] == "curation.stages.their_stages:Whole" and "all samples at once" in error["what"]


@pytest.fixture
def text_run(curate, tmp_path):
    """Conversations of which some repeat others and some hold 9 words of a benchmark's item of 20."""
    for folder in ("text/Set", "bench"):
        (tmp_path / folder).mkdir(parents=True)
    item = "how many of the nineteen wooden boats that left the old harbour at dawn came back before the storm"
    rows = [{"question": f"What is {i} times {i + 3}?", "answer": f"It is {i * (i + 3)}."} for i in range(12)]
    rows += [
        rows[3],
        {"question": item[:47], "answer": "Four."},
        {"question": item, "answer": "4"},
    ]
    (tmp_path / "text/Set/a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "bench/gsm8k.jsonl").write_text(json.dumps({"question": item, "answer": "4"}))
    stages = {
        "text_ingest": {},
        "text_deduplicate": {},
        "text_decontaminate": {"folder": str(tmp_path / "bench"), "benchmarks": ["gsm8k"]},
        "text_export": {},
    }
    source = {"kind": "text", "path": str(tmp_path / "text"), "sets": {"Set": "orca_math"}}
    executor = {"name": "in_process", "workers": 0}
    curate({"name": "test", "curation": {"source": source, "stages": stages, "executor": executor}})
    return tmp_path / "run"


def test_text_is_compared_in_longer_or_shorter_runs_of_words(text_run, ask, copy_of, really):
    told = ask(text_run, "text_decontaminate.n=8")
    assert lines_of(told)["text_decontaminate"]["dropped"] == {"benchmark_leak": 2}
    real = really(copy_of(text_run), "text_decontaminate.n=8")
    for mine, line in zip(told["what_if"][0]["funnel"], real, strict=True):
        assert all(mine[key] == line[key] for key in ("stage", "in", "kept", "dropped"))
    assert told["now"][2]["dropped"] == {"benchmark_leak": 1}


def test_other_benchmarks_take_a_run(text_run, ask):
    assert "measured" in ask(text_run, "text_decontaminate.benchmarks=[[mmlu]]", code=2)["error"]["what"]

"""The mini twins as a user runs them, one after the other, on a small crawl where the demo's would be."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from megavlm.megatron_mm.data.samples import read_conversation
from megavlm.platform.cli import main
from megavlm.platform.shards import ShardReader, ShardWriter

MINIS = ("eve-laion-mini", "densefusion-mini", "eve-sa1b-mini", "eve-openimages-mini", "eve-cap-mini")
PARTS = {"laion": "eve-laion-mini", "sa1b": "eve-sa1b-mini", "openimages": "eve-openimages-mini"}


@pytest.fixture(scope="module")
def minis(tools: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder with runs/NAME of every mini, run in the order in which they need each other."""
    root = tmp_path_factory.mktemp("minis")
    crawl(root / "demo", tools)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.delenv("MEGAVLM_RUNS", raising=False)
        patch.setenv("MEGAVLM_DEMO_DATA", str(root / "demo"))
        for name in MINIS:
            assert main(["curate", "run", name]) == 0, name
    yield root / "runs"


def crawl(demo: Path, tools: Any) -> None:
    """The demo's places: a crawl, with one sample that has no caption; and held-out pictures, of which it holds one."""
    tools.small_crawl(demo / "raw")
    tools.write_shard(demo / "raw", "00003", [tools.raw("000030000", tools.encode(tools.photo(77)), caption=None)])
    with ShardWriter(demo / "sets" / "vqa-heldout") as writer:
        writer.write("seen", {"jpg": tools.encode(tools.photo(1001)), "json": {"question": "What?"}})


def exported(run: Path) -> dict[str, dict[str, Any]]:
    """Every sample of a run's export: key -> its fields, `json` parsed."""
    reader = ShardReader(str(run / "export"))
    samples = (reader.read(i) for i in range(len(reader)))
    return {sample.key: {**sample.fields, "json": sample.json()} for sample in samples}


def reasons(run: Path) -> Counter[str]:
    lines = json.loads((run / "funnel.json").read_text())
    return Counter({reason: n for line in lines for reason, n in line["dropped"].items()})


@pytest.mark.parametrize("name", MINIS)
def test_a_mini_runs_to_its_end_and_what_it_leaves_can_be_packed(minis, name):
    assert (minis / name / "finished").exists()
    reader = ShardReader(str(minis / name / "export"))
    assert len(reader) > 0
    for i in range(len(reader)):
        sample = reader.read(i)
        talk = read_conversation(sample)
        assert [turn["content"] for turn in talk.messages] == ["<image>", sample.text()]
        assert talk.images == [sample.fields["jpg"]]


@pytest.mark.parametrize("name", MINIS[:4])
def test_captions_are_new_and_say_that_nobody_learnt_to_write_them(minis, name):
    told = [(fields["txt"].decode(), fields["json"]["caption"]) for fields in exported(minis / name).values()]
    assert {caption["model"] for _, caption in told} == {"random-weights"}
    assert all(text != caption["original"] for text, caption in told)
    assert len({text for text, _ in told}) > 5, "other words for other images"


@pytest.mark.parametrize(("name", "nearest"), [("eve-laion-mini", 20), ("densefusion-mini", 3)])
def test_duplicates_go_before_the_nearest_are_taken(minis, name, nearest):
    copies = {"000000011": "000000000", "000010011": "000010000", "000020011": "000020000"}  # of small_crawl
    kept = exported(minis / name)
    assert [pair for pair in copies.items() if set(pair) <= set(kept)] == []
    assert max(Counter(fields["json"]["cluster"] for fields in kept.values()).values()) <= nearest


def test_images_without_captions_go_on_where_the_set_has_none(minis):
    assert reasons(minis / "eve-laion-mini")["missing_caption"] == 1
    assert reasons(minis / "eve-sa1b-mini")["missing_caption"] == 0
    assert "000030000" in exported(minis / "eve-sa1b-mini")
    assert all(fields["json"]["source"]["metadata"] == {} for fields in exported(minis / "eve-sa1b-mini").values())


def test_the_merged_set_is_its_parts_less_what_evaluation_holds(minis):
    merged, parts = exported(minis / "eve-cap-mini"), {part: exported(minis / run) for part, run in PARTS.items()}
    named = {f"{part}/{key}": (part, fields) for part, samples in parts.items() for key, fields in samples.items()}
    dropped = {key for key in named if key.endswith("000010001")}
    blank = {key for key, (_, fields) in named.items() if not fields["txt"].strip()}
    assert dropped and set(merged) == set(named) - dropped - blank
    for key, fields in merged.items():
        part, before = named[key]
        assert (fields["jpg"], fields["txt"]) == (before["jpg"], before["txt"])
        source = fields["json"]["source"]
        assert source["shard"].startswith(f"{part}--") and source["metadata"] == before["json"]

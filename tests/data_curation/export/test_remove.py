"""Take-downs: the samples leave, nothing else changes, and no later run brings them back."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from megavlm.data_curation.export.place import Place
from megavlm.data_curation.removal.blocklist import Blocklist
from megavlm.data_curation.removal.remove import Removal, carry_out
from megavlm.platform.errors import InputError
from megavlm.platform.shards import ShardReader

PREFIX = "https://example.org/"
GONE = ["000000004", "000010007", "000010008"]
"""Keys of two output shards; small_crawl's keys are those of the source and of the export."""


def files(export: Path) -> dict[str, bytes]:
    """Everything but the dated list."""
    found = (path for path in sorted(export.rglob("*")) if path.is_file() and path.name != "removed.jsonl")
    return {str(path.relative_to(export)): path.read_bytes() for path in found}


def keys(export: Path) -> list[str]:
    return list(ShardReader(export).keys())


def listed(path: Path) -> list[dict]:
    return [json.loads(line) for line in (path / "removed.jsonl").read_text().splitlines()]


@pytest.fixture
def ids(tmp_path):
    """ids(word, ...) -> the file."""

    def write(*words: str) -> Path:
        path = tmp_path / "ids.txt"
        path.write_text("\n".join(words) + "\n\n")
        return path

    return write


@pytest.fixture
def never(finished, tmp_path) -> dict[str, bytes]:
    """The export of a run whose source never let GONE out: its list said so before it began."""
    lines = [{"id": key, "samples": [{"shard": key[:5], "key": key}]} for key in GONE]
    (tmp_path / "never").mkdir()
    Blocklist(tuple(lines)).write(tmp_path / "never" / "removed.jsonl")
    return tmp_path / "never"


def names_of(run: Path, kind: str) -> list[str]:
    table = pd.read_parquet(run / "export" / "provenance").set_index("key", drop=False)
    return table.loc[GONE, kind].tolist()


@pytest.mark.parametrize("kind", ["key", "url", "sha256"])
def test_only_the_shards_concerned_change_and_hold_the_rest(finished, verb, ids, kind):
    before, order = files(finished / "export"), keys(finished / "export")
    told = verb("data remove", finished, "--ids", ids(*names_of(finished, kind)), "--reason", "request 17")
    assert (told["samples"], told["unknown"]) == (3, [])
    assert [one["kinds"] for one in told["ids"]] == [{kind: 1}] * 3
    after = files(finished / "export")
    changed = {name for name in before if after.get(name) != before[name]}
    touched = {f"{shard}{end}" for shard in told["shards"] for end in (".tar", ".index.parquet")}
    touched |= {f"provenance/{shard}.parquet" for shard in told["shards"]}
    assert len(told["shards"]) == 2 and changed == touched | {"manifest.json", "statistics.json"}
    assert keys(finished / "export") == [key for key in order if key not in GONE]
    assert verb("data verify", finished / "export")["problems"] == []
    manifest = json.loads(after["manifest.json"])
    assert manifest["samples"] == 30 and manifest["funnel"][-1]["dropped"] == {"removed": 3}
    assert json.loads(after["statistics.json"])["samples"] == 30


def test_nothing_of_the_samples_is_left_in_the_export(finished, verb, ids):
    reader = ShardReader(finished / "export")
    images = [reader.read(key).fields["jpg"] for key in GONE]
    urls = [f"{PREFIX}{key}".encode() for key in GONE]
    verb("data remove", finished, "--ids", ids(*GONE))
    everything = b"".join(files(finished / "export").values())
    assert not any(image in everything for image in images) and not any(url in everything for url in urls)


def test_it_equals_an_export_that_never_had_them(finished, never, again, verb, ids):
    verb("data remove", finished, "--ids", ids(*GONE))
    again(out=never.name)
    assert files(finished / "export") == files(never / "export")


def test_the_list_says_what_was_asked_and_never_the_content(finished, verb, ids):
    verb("data remove", finished, "--ids", ids(f"{PREFIX}{GONE[0]}"), "--reason", "request 17")
    [line] = listed(finished)
    assert line.pop("date").endswith("+00:00")
    assert line == {
        "id": f"{PREFIX}{GONE[0]}",
        "kinds": ["url"],
        "samples": [{"shard": "00000", "key": GONE[0]}],
        "reason": "request 17",
    }
    assert listed(finished / "export") == listed(finished)


def test_again_it_changes_nothing(finished, verb, ids):
    verb("data remove", finished, "--ids", ids(*GONE))
    before = {path: (path.stat().st_mtime_ns, path.stat().st_ino) for path in finished.rglob("*") if path.is_file()}
    told = verb("data remove", finished, "--ids", ids(*GONE), "--strict")
    assert told["samples"] == 0 and [one["before"] for one in told["ids"]] == [1, 1, 1]
    after = {path: (path.stat().st_mtime_ns, path.stat().st_ino) for path in finished.rglob("*") if path.is_file()}
    lock = finished / "ledger" / "driver.lock"
    assert {path for path in before if before[path] != after[path]} <= {lock}


def test_a_dry_run_tells_the_same_and_changes_nothing(finished, verb, ids):
    before = files(finished)
    told = verb("data remove", finished, "--ids", ids(*GONE), "--dry-run")
    assert told["dry_run"] and told["samples"] == 3 and files(finished) == before
    assert verb("data remove", finished, "--ids", ids(*GONE)) == told | {"dry_run": False}


def test_unknown_ids_are_listed_and_strict_refuses_before_anything_changes(finished, verb, ids):
    before = files(finished)
    words = ids(GONE[0], "nobody", f"{PREFIX}nobody")
    assert "2 ids name nothing" in verb("data remove", finished, "--ids", words, "--strict", code=3)["error"]["what"]
    assert files(finished) == before
    told = verb("data remove", finished, "--ids", words)
    assert told["unknown"] == ["nobody", f"{PREFIX}nobody"] and told["samples"] == 1
    assert GONE[0] not in keys(finished / "export")


@pytest.mark.parametrize(
    "override",
    [
        "curation.stages.export.samples_per_shard=7",
        "curation.stages.select.nearest=99",
        "seed=4",
        "export deleted",
        "raw",
    ],
)
def test_a_later_run_does_not_bring_them_back(finished, verb, ids, again, override, tmp_path):
    """Another threshold, another seed, everything exported anew."""
    verb("data remove", finished, "--ids", ids(*GONE))
    left = set(keys(finished / "export"))
    if override == "export deleted":
        shutil.rmtree(finished / "export")
        shutil.rmtree(finished / "ledger" / "export")
    elif override == "raw":  # everything but the list
        for path in finished.iterdir():
            if path.name != "removed.jsonl":
                shutil.rmtree(path) if path.is_dir() else path.unlink()
    again(*([override] if "=" in override else []))
    assert set(keys(finished / "export")) == left
    assert verb("data verify", finished / "export")["problems"] == []
    assert listed(finished / "export") == listed(finished)
    funnel = json.loads((finished / "funnel.json").read_text())
    assert funnel[-1]["dropped"] == {"removed": 3} and funnel[-1]["in"] - 3 == funnel[-1]["kept"] == len(left)


def test_a_copy_of_the_image_that_would_come_later_stays_out_by_its_hash(finished, verb, ids, again):
    """The planted copies are dropped as duplicates; with deduplication off they would be exported."""
    copies = pd.read_parquet(finished / "rejected.parquet")
    copies = copies[copies["reason"].str.startswith("duplicate")]["key"].tolist()
    hashes = pd.concat(map(pd.read_parquet, (finished / "filter").glob("*.parquet"))).set_index("key")["sha256"]
    told = verb("data remove", finished, "--ids", ids(hashes[copies[0]].upper()))
    assert told["samples"] == 0 and len(told["unknown"]) == 1
    again("curation.stages.deduplicate.hash_radius=0", "curation.stages.deduplicate.epsilon=null")
    assert set(copies) - set(keys(finished / "export")) == {copies[0]}


def test_status_counts_what_the_shards_hold(finished, verb, ids):
    verb("data remove", finished, "--ids", ids(*GONE))
    line = verb("curate status", finished)["funnel"][-1]
    assert (line["in"], line["kept"], line["dropped"]) == (33, 30, {"removed": 3})
    [life] = verb("curate inspect", finished, GONE[0])["samples"]
    assert life["export"] is None and life["removed"]["id"] == GONE[0] and life["stages"][0]["stage"] == "ingest"


def test_a_shard_of_which_nothing_is_left_goes(finished, verb, ids, again):
    tar = sorted((finished / "export").glob("*.tar"))[0]
    told = verb("data remove", finished, "--ids", ids(*ShardReader(tar).keys()))
    assert told["samples"] == 10 and not list((finished / "export").rglob(f"{tar.stem}*"))
    assert verb("data verify", finished / "export")["problems"] == []
    before = files(finished / "export")
    again()
    assert files(finished / "export") == before


def test_an_export_alone_is_enough(finished, verb, ids, tmp_path):
    alone = Path(shutil.copytree(finished / "export", tmp_path / "alone"))
    told = verb("data remove", alone, "--ids", ids(*GONE))
    assert told["samples"] == 3 and told["still_held"] == []
    verb("data remove", finished, "--ids", ids(*GONE))
    assert files(alone) == files(finished / "export") and len(listed(alone)) == 3
    [life] = verb("curate inspect", alone, GONE[0])["samples"]
    assert life["stages"] == [] and life["removed"]["id"] == GONE[0]


def test_an_export_curated_again_is_still_known_by_the_first_urls(finished, verb, ids, tools, tmp_path, again):
    import yaml

    tree = tools.recipe(tmp_path, select={"nearest": 100})
    tree["curation"]["source"] = {"kind": "tars", "path": str(tmp_path), "parts": {"first": "run/export"}}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(tree, sort_keys=False))
    again(out="merged")
    told = verb("data remove", tmp_path / "merged", "--ids", ids(*(f"{PREFIX}{key}" for key in GONE)))
    assert told["samples"] == 3 and [one["kinds"] for one in told["ids"]] == [{"url": 1}] * 3
    assert not {f"first/{key}" for key in GONE} & set(keys(tmp_path / "merged" / "export"))
    [life] = verb("curate inspect", tmp_path / "merged", "first/000000001")["samples"]
    assert life["export"]["key"] == "first/000000001" and set(life["export"]["members"]) == {"jpg", "txt", "json"}


def test_what_is_still_held_is_told(finished, verb, ids):
    held = {one["where"]: one["what"] for one in verb("data remove", finished, "--ids", ids(GONE[0]))["still_held"]}
    assert held[str(finished / "ingest")].startswith("captions and metadata")
    assert "the raw source" in held.values() and str(finished / "embed") in held


def test_texts_are_taken_out_by_key(texts, verb, ids, tmp_path):
    gone = ["math--all-00000001", "math--all-00000010", "talk--all-00000004"]
    order = keys(texts / "export")
    told = verb("data remove", texts, "--ids", ids(*gone))
    assert told["samples"] == 3 and told["shards"] == ["math--all-00000", "math--all-00002", "talk--all-00000"]
    assert keys(texts / "export") == [key for key in order if key not in gone]
    sets = json.loads((texts / "export" / "statistics.json").read_text())["sets"]
    assert (sets["math"]["samples"], sets["math"]["rows"], sets["talk"]["samples"]) == (10, 12, 3)
    before = files(texts / "export")
    from megavlm.platform.cli import main

    override = "curation.stages.text_export.samples_per_shard=3"
    assert main(["curate", "run", str(tmp_path / "texts.yaml"), "--out", str(texts)]) == 0
    assert files(texts / "export") == before
    assert main(["curate", "run", str(tmp_path / "texts.yaml"), override, "--out", str(texts)]) == 0
    assert set(keys(texts / "export")) == set(order) - set(gone)


def test_training_notices_that_samples_were_taken_down(finished, verb, ids):
    """A pack manifest holds the digest of its sets, compared before an offset is read; an open reader refuses."""
    open_before = ShardReader(finished / "export")
    verb("data remove", finished, "--ids", ids(GONE[0]))
    assert ShardReader(finished / "export").digest != open_before.digest
    with pytest.raises(InputError, match="changed since its samples were counted"):
        list(open_before.keys())


def test_nobody_else_may_be_at_work(finished, verb, ids):
    import fcntl

    with (finished / "ledger" / "driver.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert "another" in verb("data remove", finished, "--ids", ids(*GONE), code=2)["error"]["what"]


@pytest.mark.parametrize(
    ("content", "says"), [(b"\n \n", "no ids"), (b"\xff\xfe", "cannot be read"), (None, "cannot be read")]
)
def test_ids_that_are_none(finished, verb, tmp_path, content, says):
    if content is not None:
        (tmp_path / "ids").write_bytes(content)
    assert says in verb("data remove", finished, "--ids", tmp_path / "ids", code=2)["error"]["what"]


STEPS = "import sys; from megavlm.platform.cli import main; sys.exit(main(sys.argv[1:]))"


class Killed(BaseException):
    """Stands for kill -9: nothing but `finally` runs after it."""


@pytest.mark.parametrize("step", range(14))
def test_ended_before_any_write_the_same_call_completes_it(finished, never, again, verb, ids, monkeypatch, step):
    """Every file of an export is published by one function; the process ends at its n-th call."""
    import megavlm.platform.storage as storage

    calls, publish = [0], storage._publish

    def die(*arguments):
        calls[0] += 1
        if calls[0] > step:
            raise Killed
        publish(*arguments)

    place = Place.find(str(finished))
    with monkeypatch.context() as patch:
        patch.setattr(storage, "_publish", die)
        try:
            carry_out(place, Removal.plan(place, GONE, None))
        except Killed:
            pass
        else:
            assert step >= calls[0]
    blocked_already = (finished / "removed.jsonl").exists()
    assert blocked_already == (step > 0), "the list comes first"
    if step % 2 and blocked_already:
        again()  # a run that goes on completes the removal as well
    else:
        verb("data remove", finished, "--ids", ids(*GONE))
    assert verb("data verify", finished / "export")["problems"] == []
    again(out=never.name)
    assert files(finished / "export") == files(never / "export")


@pytest.mark.multiprocess
def test_killed_at_random_moments_it_ends_as_if_undisturbed(finished, never, again, ids):
    random.seed(7)
    command = [sys.executable, "-c", STEPS, "data", "remove", str(finished), "--ids", str(ids(*GONE))]

    def start() -> subprocess.Popen:
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, env=os.environ | {"OMP_NUM_THREADS": "1"})

    killed = 0
    for _ in range(3):
        process, deadline = start(), time.monotonic() + 60
        while not (finished / "removed.jsonl").exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.0005)
        time.sleep(random.random() * 0.01)
        process.send_signal(signal.SIGKILL)
        killed += process.wait() == -signal.SIGKILL
    assert killed, "it was at work"
    assert start().wait() == 0
    again(out=never.name)
    assert files(finished / "export") == files(never / "export")

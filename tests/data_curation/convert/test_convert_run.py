"""`megavlm data convert`: whole shards whatever happens, going on, and what is refused before anything is read."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from megavlm.data_curation.convert.images import Images
from megavlm.megatron_mm.data.samples import read_conversation
from megavlm.platform.cli import main
from megavlm.platform.shards import ShardReader


def text(question: str) -> dict[str, Any]:
    return {"conversations": [{"from": "human", "value": question}, {"from": "gpt", "value": "yes"}]}


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def many(count: int) -> list[dict[str, Any]]:
    return [text("<image>" * (1 + (number % 5 == 3)) + str(number)) | {"image": "a.jpg"} for number in range(count)]


def test_the_same_command_goes_on_where_it_stopped(convert, pictures, tmp_path, monkeypatch):
    """It stops at the 14th row's image, in the middle of the third shard."""
    options = ("--images", str(tmp_path / "images"), "--samples-per-shard", "4")
    convert("llava", many(23), *options, out="whole")
    fetch, asked = Images.fetch, []

    def failing(self: Images, image: Any) -> Any:
        asked.append(image)
        if len(asked) == 12:
            raise OSError(5, "the disk")
        return fetch(self, image)

    monkeypatch.setattr(Images, "fetch", failing)
    with pytest.raises(OSError, match="the disk"):
        convert("llava", many(23), *options, out="parts")
    assert sorted(path.name for path in (tmp_path / "parts").glob("*.tar")) == ["000000-00000.tar", "000001-00000.tar"]
    before = len(asked)
    told = convert("llava", many(23), *options, out="parts")
    assert len(asked) - before == 19 - 8  # nothing of the first two shards was opened again
    assert told["rows"] == 23 and told["samples"] == 19 and told["shards"] == 5
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")
    again = convert("llava", many(23), *options, out="parts")
    assert again == told and len(asked) - before == 11


@pytest.mark.multiprocess
def test_a_kill_leaves_whole_shards(tmp_path, tools):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.jpg").write_bytes(tools.encode(tools.photo(1)))
    (tmp_path / "set.json").write_text(json.dumps(many(3000)))
    words = ["data", "convert", "llava", str(tmp_path / "set.json"), str(tmp_path / "out"), "--images",
             str(tmp_path / "images"), "--samples-per-shard", "100"]  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, "-m", "megavlm.platform.cli", *words], env={**os.environ, "MEGAVLM_QUIET": "1"}
    )
    deadline = time.monotonic() + 60
    while len(list((tmp_path / "out").glob("*.tar"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait(timeout=60)
    assert not json.loads((tmp_path / "out" / "convert.json").read_bytes())["finished"]
    assert main(words) == 0
    reader = ShardReader(tmp_path / "out")
    assert len([read_conversation(reader.read(number)) for number in range(len(reader))]) == 2400
    assert not [name for name in os.listdir(tmp_path / "out") if name.endswith(".tmp")]


def test_a_folder_in_use_is_refused(convert, pictures, tmp_path):
    convert("sharegpt", [text("a")])
    told = convert("sharegpt", [text("a"), text("b")], code=2)
    assert "another conversion: files" in told["error"]["what"]
    (tmp_path / "out" / "convert.json").unlink()
    assert "other shards" in convert("sharegpt", [text("a")], code=2)["error"]["what"]


def test_a_dry_run_writes_nothing(convert, pictures, tmp_path):
    told = convert("llava", many(9), "--images", str(tmp_path / "images"), "--dry-run", "--limit", "4")
    assert (told["rows"], told["samples"], told["rejected"]) == (4, 3, {"image_count": 1})
    assert told["first"]["0.jpg"].endswith(" bytes") and not (tmp_path / "out").exists()


@pytest.mark.parametrize(("words", "what"), [
    (["lava", "x", "out"], "unknown conversion 'lava'"), (["llava", "none.json", "out"], "no such file"),
    (["llava", "x", "s3://b/out"], "no folder here"), (["llava", "x", "out", "--limit", "0"], "not positive"),
])  # fmt: skip
def test_what_cannot_be_meant_is_refused(words, what, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["data", "convert", *words]) == 2
    assert what in capsys.readouterr().err


def test_nothing_usable_is_an_error_that_says_why(convert, tmp_path):
    told = convert("llava", [text("<image>") | {"image": "a.jpg"}] * 3, code=2)
    assert "not one of 3 rows" in told["error"]["what"] and "missing_image 3" in told["error"]["fix"]
    assert len((tmp_path / "out" / "rejected.jsonl").read_text().splitlines()) == 3

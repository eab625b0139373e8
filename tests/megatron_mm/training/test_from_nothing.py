"""`megavlm train nvlm-d-mini` where nothing is there yet."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

SMALL = ["stages.language.steps=2", "stages.language.mixture.sequence_length=256"]


@pytest.mark.multiprocess
@pytest.mark.timeout(280)
def test_the_mini_recipe_makes_its_demo_data_first_and_says_so(
    megavlm: Callable[..., subprocess.Popen[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEGAVLM_RUNS", str(tmp_path / "runs"))
    monkeypatch.delenv("MEGAVLM_DEMO_DATA", raising=False)
    out, err = megavlm("train", "nvlm-d-mini", *SMALL, "--stage", "language", "--json").communicate(timeout=240)
    data = tmp_path / "runs" / "demo" / "data"
    assert f"demo data not found at {data}: making it first" in err
    told = json.loads(out)
    assert told["finished"] and told["stages"]["language"]["steps"] == 2, err
    assert (data / "sets" / "text-train").is_dir()
    # A curation that reads the demo's raw shards by the same mark finds them; it has nothing to make.
    again = megavlm("curate", "run", "curate-demo", "curation.stages={ingest: {}}", "--json")
    out, err = again.communicate(timeout=100)
    assert again.returncode == 0, err
    assert json.loads(out)["shards"] == len(list((data / "raw").glob("*.tar"))) > 1

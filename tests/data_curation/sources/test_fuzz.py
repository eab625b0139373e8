"""60 damaged tars, Parquet files, JSON files and CSVs: none is fatal, each has a reason or is refused by name."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

CAMPAIGNS = Path(__file__).resolve().parents[3] / "benchmarks" / "campaigns"


def test_60_damaged_shards():
    spec = importlib.util.spec_from_file_location("fuzzing", CAMPAIGNS / "fuzzing.py")
    assert spec is not None and spec.loader is not None
    fuzzing = sys.modules["fuzzing"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(fuzzing)
    told = fuzzing.supervise(CAMPAIGNS / "fuzz_shards.py", 60, seed=7)
    outcomes = [one["outcome"] for one in told]
    assert set(outcomes) <= {"read", "part", "nothing", "refused"}, [
        one for one in told if one["outcome"] in fuzzing.LOST
    ]
    assert len(outcomes) == 60 and len(set(outcomes)) >= 3  # varied
    assert max(one["peak_mib"] for one in told) < 2000

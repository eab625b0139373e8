"""200 damaged images, each decoded or refused with its reason; and that the supervisor sees what must not happen."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

CAMPAIGNS = Path(__file__).resolve().parents[3] / "benchmarks" / "campaigns"
REASONS = {"empty", "not_an_image", "truncated", "too_large", "unreadable"}
WORST = """
import os, sys, time
from pathlib import Path
sys.path.insert(0, {folder!r})
from fuzzing import campaign

def judge(data):
    if data.startswith(b"die"):
        os.kill(os.getpid(), 11)
    if data.startswith(b"hang"):
        time.sleep(60)
    if data.startswith(b"raise"):
        raise KeyError("surprise")
    return "fine"

seeds = {{name: name.encode() + bytes(10_000) for name in ("fine", "die", "raise", "hang")}}
sys.exit(campaign(Path(__file__), seeds, judge, "worst", 8, 3))
"""


@pytest.fixture(scope="module")
def fuzzing() -> ModuleType:
    spec = importlib.util.spec_from_file_location("fuzzing", CAMPAIGNS / "fuzzing.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["fuzzing"] = module  # dataclasses and the like look their module up by name
    spec.loader.exec_module(module)
    return module


def test_200_damaged_images(fuzzing):
    told = fuzzing.supervise(CAMPAIGNS / "fuzz_images.py", 200, seed=7)
    assert [one["case"] for one in told] == list(range(200))
    outcomes = [one["outcome"] for one in told]
    assert set(outcomes) <= REASONS | {"decoded"}, [one for one in told if one["outcome"] in fuzzing.LOST]
    assert (
        outcomes.count("decoded") < 150 and len(REASONS.intersection(outcomes)) >= 3
    )  # the damage is real, and varied
    assert max(one["peak_mib"] for one in told) < 2000


def test_what_must_not_happen_is_seen(fuzzing, tmp_path):
    script = tmp_path / "worst.py"
    script.write_text(WORST.format(folder=str(CAMPAIGNS)))
    told = fuzzing.supervise(script, 8, seed=3, silence=1.5)
    truth = {"fine": "fine", "die": "died", "raise": "raised", "hang": "hung"}
    seeds = {name: name.encode() + bytes(10_000) for name in truth}
    for case, one in enumerate(told):
        data = fuzzing.damaged(seeds, 3, case)[1]
        assert one["outcome"] == next((word for name, word in truth.items() if data.startswith(name.encode())), "fine")
    assert {one["outcome"] for one in told} == set(truth.values())
    assert "surprise" in next(one["detail"] for one in told if one["outcome"] == "raised")


def test_a_case_is_always_the_same_bytes(fuzzing):
    seeds = {"a": bytes(range(256)) * 4, "b": b"text" * 100}
    cases = [fuzzing.damaged(seeds, 1, number) for number in range(64)]
    assert cases == [fuzzing.damaged(seeds, 1, number) for number in range(64)]
    assert cases != [fuzzing.damaged(seeds, 2, number) for number in range(64)]
    assert sum(data not in seeds.values() for _, data in cases) > 56

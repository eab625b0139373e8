"""A trace as a table, in the unit that its peaks ask for."""

from __future__ import annotations

import json

import pytest

from megavlm.megatron_mm.tracing.contracts import Peak, RankTrace
from megavlm.megatron_mm.tracing.told import readable, record


def trace(rank: int, unit: int) -> RankTrace:
    low, high = (Peak(phase, n * unit, {"weights": n * unit}, (("mlp", 2 * unit),)) for phase, n in PHASES)
    return RankTrace(rank, 1, 1234, {"weights": unit, "buffers": unit // 2}, (low, high), 2.0)


PHASES = (("look", 3), ("schedule", 6))


@pytest.mark.parametrize(("unit", "name"), [(2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")])
def test_the_fullest_moment_of_each_rank_is_told_in_its_unit(unit: int, name: str) -> None:
    head, _, first, second = readable({"sft": [trace(0, unit), trace(5, unit)]}).splitlines()
    assert head == f"trace of sft: 2 ranks that differ, walked in 4 s; nothing failed. {name}:"
    assert first.split() == ["0", "1", "1,234", "1.50", "6.00", "schedule", "mlp", "2.00"]
    assert second.split()[0] == "5"


def test_the_record_is_plain_and_holds_every_phase() -> None:
    told = json.loads(json.dumps(record({"sft": [trace(0, 1)]})))
    assert [peak["phase"] for peak in told["sft"][0]["peaks"]] == ["look", "schedule"]
    assert told["sft"][0]["standing"] == {"weights": 1, "buffers": 0}

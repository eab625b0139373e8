"""The figures of docs/gate.md are those of the code."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from megavlm.megatron_mm.evaluation.average import mean_drop
from megavlm.megatron_mm.evaluation.pairs import Paired

PAGE = (Path(__file__).parents[3] / "docs" / "gate.md").read_text()
DIFFER = (0.0, 0.02, 0.05, 0.10, 0.20)


def rows(heading: str, columns: int) -> list[list[str]]:
    """Cells of the first table after `heading`."""
    lines = PAGE.partition(heading)[2].splitlines()
    found = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    table = [row for row in found[2:] if len(row) == columns]
    return table


def rated(lost: float, gained: float) -> Paired:
    return Paired(0, 0, np.array([-1.0, 0.0, 1.0]), np.array([gained, 1 - lost - gained, lost]) * 1e6)


@pytest.mark.parametrize(("heading", "allowed", "many"), [("one point is allowed:", 0.01, 6), ("two points:", 0.02, 5)])
def test_as_many_items_decide_and_one_fewer_does_not(heading: str, allowed: float, many: int) -> None:
    for drop, *cells in rows(heading, 6)[:many]:
        for differ, cell in zip(DIFFER, cells, strict=True):
            lost, gained = (differ + float(drop) / 100) / 2, (differ - float(drop) / 100) / 2
            if cell == "-":
                assert min(lost, gained) < 0
                continue
            for items, decides in ((int(cell), True), (int(cell) - 1, False)):
                low, high = rated(lost, max(gained, 0)).interval(0.95, items / 1e6)
                assert (high <= allowed or low > allowed) == decides, (drop, differ, items)


def test_the_worked_example() -> None:
    suites, told = [], rows("much as NVLM reports it.", 6)[:5]
    for name, items, lost, gained, drop, interval in told:
        n, down, up = int(items), int(lost), int(gained)
        paired = Paired(0, 0, np.array([-1.0, 0.0, 1.0]), np.array([up, n - down - up, down]))
        low, high = mean_drop(suites, 0.95) if name == "average" else paired.interval(0.95)
        mean = np.mean([suite.drop for suite in suites]) if name == "average" else paired.drop
        suites.append(paired)
        assert f"{100 * mean:+.2f}" == drop
        assert re.findall(r"[-+][\d.]+", interval) == [f"{100 * low:+.2f}", f"{100 * high:+.2f}"]
    assert [row[0] for row in told] == ["mmlu", "gsm8k", "math", "humaneval", "average"]

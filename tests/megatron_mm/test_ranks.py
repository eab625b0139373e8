"""Ranks that stay: what fails says so and costs only its own script."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from ranks import RankFailed, Ranks

SCRIPT = """\
import os, signal, sys, time
from pathlib import Path
word, rank, out = sys.argv[1], os.environ["RANK"], Path(sys.argv[2])
if word == "raises" and rank == "1":
    raise ValueError("the second one's")
if word == "dies" and rank == "1":
    os.kill(os.getpid(), signal.SIGKILL)
if word in ("dies", "hangs"):
    time.sleep(60)
(out / rank).write_text(f"{os.getpid()} {os.environ['WORLD_SIZE']}")
"""


@pytest.fixture
def ranks() -> Iterator[Ranks]:
    made = Ranks()
    yield made
    made.close()


@pytest.mark.multiprocess
@pytest.mark.timeout(200)
def test_what_fails_says_so_and_costs_only_its_own_script(ranks: Ranks, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)

    def told() -> list[list[str]]:
        return [(tmp_path / str(rank)).read_text().split() for rank in (0, 1)]

    ranks.run(script, 2, "works", tmp_path)
    first = told()
    ranks.run(script, 2, "works", tmp_path)
    assert told() == first and [world for _, world in first] == ["2", "2"], "the same processes"
    with pytest.raises(RankFailed, match=r"script.py on 2 ranks: rank 1 (.|\n)*ValueError: the second one's"):
        ranks.run(script, 2, "raises", tmp_path)
    with pytest.raises(RankFailed, match="rank 1 died with exit code -9") as error:
        ranks.run(script, 2, "dies", tmp_path)
    assert "rank 0" not in str(error.value)
    with pytest.raises(TimeoutError, match="took more than 1 s"):
        ranks.run(script, 2, "hangs", tmp_path, seconds=1)
    ranks.run(script, 2, "works", tmp_path)
    assert not {pid for pid, _ in told()} & {pid for pid, _ in first}, "nothing is left of those that failed"

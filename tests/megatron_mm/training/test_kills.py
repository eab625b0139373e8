"""Four kills, two of them inside a save: what goes on from them is to the bit the training that nobody killed.

The campaign training_kills does this a hundred times, with the command itself.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from megavlm.platform.runs import RunFolder

WORKER = Path(__file__).with_name("kill_worker.py")
STAGES = """\
  sft:
    train: [encoder, connector, decoder]
    mixture: {weights: {text: 1, vqa: 2}, sequence_length: 128, packs_per_batch: 4}
    steps: 30
    precision: fp32
    optimizer: {lr: 1e-3, schedule: constant}
    checkpoint: {every: 5, keep_last: 2, keep_every: 15}
"""


def lines(run: Path) -> list[tuple[int, float, float]]:
    """Of every step, as often as it was done."""
    return [(line["step"], line["loss"], line["grad_norm"]) for line in RunFolder(run).metrics()]


@pytest.mark.multiprocess
@pytest.mark.timeout(500)
def test_killed_four_times(recipe: Path, tmp_path: Path, write_recipe: Callable[..., Path]) -> None:
    for name in ("text", "vqa"):
        (tmp_path / name).symlink_to(recipe.parent / name)
    words = [sys.executable, "-W", "ignore", str(WORKER)]
    words += [str(write_recipe(tmp_path, STAGES, max_tiles=2, seed=5)), str(tmp_path)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-4000:]
    told = json.loads(done.stdout.splitlines()[-1])
    wanted = dict((step, rest) for step, *rest in lines(tmp_path / "null"))
    assert sorted(wanted) == list(range(1, 31))
    for way in ("false", "true"):
        found = lines(tmp_path / way)
        assert all(wanted[step] == rest for step, *rest in found) and {step for step, *_ in found} == wanted.keys()
        kills = told[way]["kills"]
        assert not any(kill["ended"] for kill in kills)
        assert kills[0]["ruins"], "the first kill was to hit inside a save"
        assert told[way]["starts"] == [0, *(kill["whole"] for kill in kills)]
        assert told[way]["left"] == {"whole": 30, "ruins": {}}
        kept = sorted(folder.name for folder in (tmp_path / way / "checkpoints" / "sft").iterdir())
        assert kept == ["step-000015", "step-000025", "step-000030"]

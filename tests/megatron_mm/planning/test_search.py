"""The search against every layout one by one, and against the layout that a paper trained in."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from typing import get_args

import pytest

from megavlm.megatron_mm.config import Parallel
from megavlm.megatron_mm.planning.contracts import Estimate, Recompute
from megavlm.megatron_mm.planning.estimate import Layout, Task, micro_batches, task_of
from megavlm.megatron_mm.planning.hardware import find_gpu
from megavlm.megatron_mm.planning.refuse import ROOM
from megavlm.megatron_mm.planning.search import judged, layouts, why_slower
from megavlm.platform.config import load_recipe
from megavlm.platform.errors import ConfigError


def every_layout(task: Task, world: int) -> list[Layout]:
    """All that can be written down, most of them nonsense."""
    sizes = [1, 2, 3, 4, 5, 6, 8, 10, 15, 16, 20, 30]
    found = []
    for tp, pp, vp, cp, sequence in itertools.product([1, 2, 4, 8], sizes, sizes, [1, 2, 4, 8], [False, True]):
        if tp * pp * cp > world or (sequence and tp == 1) or (vp > 1 and pp == 1):
            continue
        parallel = Parallel(tp=tp, pp=pp, vp=vp, cp=cp, sequence_parallel=sequence)
        found += [Layout(parallel, recompute) for recompute in get_args(Recompute)]
    return found


@pytest.mark.parametrize(("recipe", "gpu", "world"), [("nvlm-d-34b", "h100", 16), ("eagle-x5-13b", "a100-80", 32)])
def test_no_layout_that_fits_is_faster_than_what_is_proposed(recipe, gpu, world):
    task, kind = task_of(load_recipe(recipe), "sft"), find_gpu(gpu)
    best = layouts(task, kind, world).rows[0]
    made = [judged(task, kind, world, layout) for layout in every_layout(task, world)]
    fits = [row for row in made if isinstance(row, Estimate) and row.worst.total <= ROOM * kind.memory]
    assert len(fits) > 5
    assert best.time.total <= min(row.time.total for row in fits) * (1 + 1e-9)
    assert best.worst.total <= ROOM * kind.memory


def test_rows_come_in_order_each_with_another_split():
    found = layouts(task_of(load_recipe("nvlm-d-34b"), "sft"), find_gpu("h100"), 64, wanted=8)
    seconds = [row.time.total for row in found.rows]
    splits = {(row.job.parallel.tp, row.job.parallel.pp, row.job.parallel.cp) for row in found.rows}
    assert seconds == sorted(seconds) and len(splits) == len(seconds) == 8


def test_the_cause_is_the_one_that_costs_most():
    found = layouts(task_of(load_recipe("nvlm-d-34b"), "sft"), find_gpu("h100"), 64)
    best, other = found.rows[:2]
    cause, seconds = why_slower(other, best)
    assert seconds == getattr(other.time, cause) - getattr(best.time, cause)
    assert 10 * seconds >= other.time.total - best.time.total  # of ten causes


def test_where_nothing_fits_the_nearest_is_told():
    found = layouts(task_of(load_recipe("nvlm-d-72b"), "sft"), find_gpu("a100-40"), 8)
    assert not found.rows and found.nearest and "GiB" in found.nearest.error.what
    assert found.nearest.estimate.worst.total > find_gpu("a100-40").memory


@pytest.mark.parametrize(
    ("packs", "dp", "layout", "expected"),
    [(29, 4, {"pp": 4}, 8), (29, 4, {"pp": 4, "vp": 5}, 8), (33, 4, {"pp": 4, "vp": 5}, 12), (33, 4, {"pp": 4}, 9)],
)
def test_an_interleaved_pipeline_is_filled_up(packs, dp, layout, expected):
    """As the loader does it (data/loader.py's `micro_batches_of`)."""
    assert micro_batches(packs, dp, Parallel(**layout)) == expected


def test_a_part_that_is_not_there_is_refused():
    with pytest.raises(ConfigError, match=r"no part 'encoder.sam'"):
        task_of(load_recipe("nvlm-d-7b", ["stages.sft.train=[encoder.sam]"]), "sft")


@pytest.fixture(scope="module")
def told() -> dict:
    """`megavlm plan nvlm-d-72b`, as issue and page name it."""
    words = ["plan", "nvlm-d-72b", "--gpus", "128", "--gpu", "h100", "--json"]
    code = f"""
import sys
from megavlm.platform.cli import main
code = main({words!r})
assert "torch" not in sys.modules
sys.exit(code)"""
    before = os.times()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    after = os.times()
    assert done.returncode == 0, done.stderr
    used = after.children_user - before.children_user + after.children_system - before.children_system
    return json.loads(done.stdout) | {"cpu_seconds": used}


def test_it_answers_at_once(told):
    """Under two seconds are wanted, and 1.7 were measured; a busy machine's CPU seconds are longer ones."""
    assert told["cpu_seconds"] < 3


def test_what_is_proposed_is_no_worse_than_the_papers_layout(told):
    """NVLM's table 10 and 11: TP8, and TP8 x PP4."""
    for name, pp in (("pretrain", 1), ("sft", 4)):
        stage = told["stages"][name]
        own, best = stage["own"], stage["proposed"][0]
        assert (own["layout"]["tp"], own["layout"]["pp"]) == (8, pp) and not stage["refused"]
        assert best["step_seconds"]["total"] <= own["step_seconds"]["total"]
        assert max(rank["total"] for rank in best["memory"]) <= best["memory_limit"]


def test_the_figures_of_an_estimate_belong_together(told):
    own = told["stages"]["sft"]["own"]
    seconds = own["step_seconds"]["total"]
    causes = sum(value for cause, value in own["step_seconds"].items() if cause != "total")
    assert causes == pytest.approx(seconds)
    assert own["days"] == pytest.approx(40_000 * seconds / 86_400)
    assert own["gpu_hours"] == pytest.approx(own["days"] * 24 * 128)
    assert own["mfu"] == pytest.approx(own["model_flops_per_step"] / seconds / (128 * 989.4e12))
    assert own["samples_per_second"] == pytest.approx(128 / seconds)
    assert len(own["memory"]) == 4


def test_the_overrides_of_a_proposal_make_the_recipe_what_is_proposed(told):
    proposed = told["stages"]["sft"]["proposed"][0]
    recipe = load_recipe("nvlm-d-72b", proposed["overrides"])
    again = task_of(recipe, "sft")
    assert again.estimate(find_gpu("h100"), 128, again.layout).record() == {
        key: proposed[key] for key in proposed if key not in {"slower", "overrides"}
    }

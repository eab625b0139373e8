"""The demo as a newcomer runs it: what it promises, what it shows, and that nothing is lost when it is killed."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from megavlm.megatron_mm.evaluation.chance import chance_accuracy
from megavlm.platform.demo.plants import BOUNDED_COPIES, COPIES

pytestmark = [pytest.mark.demo, pytest.mark.timeout(1800)]
CURATION = [
    "images",
    "kept",
    "duplicates_planted",
    "duplicate_recall",
    "duplicate_precision",
    "recall_by_kind",
    "rejected",
]
TRAINING = ["backend", "tensor_parallel", "steps", "first_loss", "last_loss", "tokens_per_second"]
EVALUATION = ["vl_accuracy", "vl_chance", "vl_blind", "text_accuracy_before", "text_accuracy_after", "text_chance"]


def command(out: Path, *options: str) -> list[str]:
    return [sys.executable, "-m", "megavlm.platform.cli", "demo", "--out", str(out), "--json", *options]


def environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name != "MEGAVLM_DEMO_DATA"} | {"OMP_NUM_THREADS": "1"}


def run(out: Path, *options: str) -> dict:
    done = subprocess.run(command(out, *options), env=environment(), capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """(folder, figures) of one whole run: of that in $MEGAVLM_DEMO_RUN, where one has just been made there."""
    made = os.environ.get("MEGAVLM_DEMO_RUN")
    out = Path(made) if made else tmp_path_factory.mktemp("demo") / "demo"
    return out, run(out)


@pytest.fixture(scope="module")
def figures(demo):
    return demo[1]


def test_the_keys_of_the_contract(figures):
    assert {"curation", "training", "evaluation", "report"} <= figures.keys()
    for part, keys in {"curation": CURATION, "training": TRAINING, "evaluation": EVALUATION}.items():
        assert set(keys) <= figures[part].keys()


def test_curation_finds_what_was_planted(figures):
    curation = figures["curation"]
    assert curation["images"] > 250 and curation["kept"] > 100
    assert curation["recall_by_kind"].keys() == COPIES.keys()
    assert curation["duplicate_recall"] >= 0.95
    assert curation["duplicate_precision"] >= 0.95
    assert all(curation["recall_by_kind"][kind] >= 0.9 for kind in BOUNDED_COPIES)


def test_every_bad_file_is_listed_with_its_reason(figures):
    assert len(figures["curation"]["planted_bad_files_named"]) == 10
    assert all(figures["curation"]["planted_bad_files_named"].values())


def test_odd_formats_come_through(demo):
    out, _ = demo
    truth = json.loads((out / "data" / "raw" / "truth.json").read_text())
    table = pq.read_table(out / "data" / "curation" / "rejected.parquet")
    dropped = dict(zip(table["key"].to_pylist(), table["stage"].to_pylist(), strict=True))
    assert len(truth["odd"]) == 5
    assert not {key for key in [*truth["odd"], truth["before_the_cut"]] if dropped.get(key) == "filter"}


def test_training_ran_on_megatron_core_split_over_two_processes(figures):
    from importlib.metadata import version

    assert figures["training"]["backend"] == f"megatron-core {version('megatron-core')}"
    assert figures["training"]["tensor_parallel"] == 2
    assert figures["training"]["last_loss"] < figures["training"]["first_loss"] / 10


def test_the_model_sees(figures):
    scores = figures["evaluation"]
    assert scores["vl_accuracy"] >= 3 * scores["vl_chance"]
    assert scores["vl_blind"] <= scores["vl_chance"] + 0.05


def test_what_only_a_tile_shows_is_answered_too(figures):
    assert figures["evaluation"]["vl_accuracy_by_kind"]["weave"] >= 0.6


def test_the_model_keeps_its_text(figures):
    scores = figures["evaluation"]
    assert scores["text_accuracy_before"] >= 5 * scores["text_chance"]
    assert scores["text_accuracy_after"] >= scores["text_accuracy_before"] - 0.02
    assert scores["text_gate"] == "pass"


def test_the_gate_refuses_the_control_without_text(demo):
    out, told = demo
    assert told["evaluation"]["control_text_gate"] == "fail"
    gate = [sys.executable, "-m", "megavlm.platform.cli", "eval", str(out / "train"), "--stage", "control"]
    options = ["--suite", "text", "--baseline", "language", "--max-drop", "0.02", "--json"]
    done = subprocess.run([*gate, *options], env=environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 3, done.stderr


def test_chance_is_the_best_constant_of_the_held_out_items(demo):
    """Counted again from the rendered set itself, not from the predictions."""
    out, told = demo
    from megavlm.platform.shards import ShardReader

    reader = ShardReader(out / "data" / "sets" / "vqa-heldout")
    items = [json.loads(reader.read(i).fields["json"]) for i in range(len(reader))]
    pairs = [(item["kind"], item["answer"]) for item in items]
    best = {kind: max(pairs.count((kind, a)) for k, a in pairs if k == kind) for kind, _ in pairs}
    assert told["evaluation"]["vl_chance"] == pytest.approx(sum(best.values()) / len(pairs), abs=1e-4)
    assert chance_accuracy(pairs) == pytest.approx(sum(best.values()) / len(pairs))


@pytest.mark.browser
def test_the_report_opens_in_a_browser(demo, open_in_browser):
    facts = open_in_browser(demo[1]["report"])
    assert len(facts.pictures) > 30
    shown = [picture for picture in facts.pictures if not picture.broken]
    assert len(shown) > 30 and all(picture.natural[0] > 0 and picture.shown[0] > 0 for picture in shown)
    assert len(facts.charts) >= 6 and all(width > 100 and height > 50 for width, height in facts.charts)
    assert facts.console == [] and facts.outside == []
    for words in ("random weights", "Duplicates", "Dropped", "Training", "Gate"):
        assert words.lower() in facts.text.lower()


def test_the_same_command_again_does_nothing_anew(demo):
    out, told = demo
    again = run(out)
    assert again["seconds"] < 60
    assert {k: v for k, v in again.items() if k != "seconds"} == {k: v for k, v in told.items() if k != "seconds"}


def test_killed_in_curation_it_ends_the_same(demo, tmp_path):
    """kill -9, the same command again: the same images and tasks."""
    whole, out = demo[0] / "data", tmp_path / "demo" / "data"
    kill_when(out.parent, "data", lambda: any((out / "curation" / "embed").glob("*.parquet")))
    assert not (out / "curation" / "finished").exists()
    run(out.parent, "--only", "data")
    assert (out / "curation/rejected.parquet").read_bytes() == (whole / "curation/rejected.parquet").read_bytes()
    for folder in ("curation/export", "sets"):
        assert contents(out / folder) == contents(whole / folder)


def contents(folder: Path) -> dict[str, str]:
    """File below `folder` -> what is in it, in short. `manifest.json` tells of the run that wrote it."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "manifest.json")
    assert files
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_killed_in_training_it_ends_the_same(demo, tmp_path):
    """kill -9, the same command again: bit-equal losses, the same answers. Begun where two stages are done already."""
    whole, out = demo[0], tmp_path / "demo"
    shutil.copytree(whole, out)
    forget(out / "train", "sft", "gate", "control")
    kill_when(out, "train", lambda: last_step(out, "sft") >= 50)
    assert not (out / "train" / "stages" / "sft" / "finished").exists()
    run(out, "--only", "train")
    assert losses(out) == {key: loss for key, loss in losses(whole).items() if key[0] != "control"}
    for name in ("vqa", "text"):
        path = f"train/predictions/sft/{name}.jsonl"
        assert (out / path).read_bytes() == (whole / path).read_bytes(), path


def forget(run: Path, *stages: str) -> None:
    """A finished run as it was before these stages."""
    for stage in stages:
        for folder in ("stages", "checkpoints", "predictions"):
            shutil.rmtree(run / folder / stage, ignore_errors=True)
    shutil.rmtree(run / "gate")
    (run / "finished").unlink()
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "metrics.jsonl").write_text("".join(line for line in lines if json.loads(line)["stage"] not in stages))


def kill_when(out: Path, only: str, reached) -> None:
    process = subprocess.Popen(
        command(out, "--only", only),
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    deadline = time.monotonic() + 300
    while not reached():
        assert process.poll() is None and time.monotonic() < deadline, "it ended before it was killed"
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def metrics(out: Path) -> list[dict]:
    path = out / "train" / "metrics.jsonl"
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return [json.loads(line) for line in lines]


def last_step(out: Path, stage: str) -> int:
    return max((line["step"] for line in metrics(out) if line["stage"] == stage), default=0)


def losses(out: Path) -> dict[tuple[str, int], float]:
    """Loss of every step; of a step done twice, the last one, which is the one that counts."""
    return {(line["stage"], line["step"]): line["loss"] for line in metrics(out)}

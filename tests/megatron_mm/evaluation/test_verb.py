"""`megavlm eval` and `megavlm generate` on a run folder with real checkpoints of a small, untrained model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from megavlm.megatron_mm.evaluation.predictions import Prediction, read_predictions, write_predictions
from megavlm.megatron_mm.evaluation.stage import gate_path, predictions_path
from megavlm.platform.cli import main
from megavlm.platform.config import load_recipe
from megavlm.platform.runs import RunFolder
from megavlm.platform.shards import ShardWriter

STAGE = {
    "train": ["decoder"],
    "steps": 1,
    "precision": "fp32",
    "mixture": {"weights": {"text": 1}, "sequence_length": 128, "packs_per_batch": 1},
    "optimizer": {"lr": 1e-3},
}
RECIPE = {
    "model": {
        "tiling": {"tile": 28, "max_tiles": 2},
        "encoder": {
            "name": "internvit", "image_size": 28, "patch_size": 7, "layers": 1, "hidden": 32, "heads": 2, "ffn": 64,
        },
        "connector": {"name": "pixel_shuffle_mlp", "hidden": 64},
        "injection": "inline",
        "decoder": {
            "name": "qwen2", "layers": 1, "hidden": 32, "heads": 4, "kv_heads": 2, "ffn": 64, "vocab": 512,
            "max_positions": 128,
        },
    },
    "stages": {"language": STAGE | {"evaluate": {"text": "held"}}, "sft": STAGE | {"after": ["language"]}},
}  # fmt: skip


def in_a_process(words: list[str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "megavlm.platform.cli", *words]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """A run folder without checkpoints."""
    recipe = RECIPE | {"data": {"tokenizer": "mini", "sets": {"text": str(tmp_path), "held": str(tmp_path / "held")}}}
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(recipe))
    resolved = load_recipe(str(tmp_path / "tiny.yaml"))
    return RunFolder.create(tmp_path / "run", resolved.tree, resolved.origins, ["megavlm", "train"])


def answered(run: RunFolder, stage: str, right: int, total: int = 200) -> None:
    items = [Prediction(f"i{i}", "spell", i < right, "a" if i < right else "b", "a") for i in range(total)]
    write_predictions(predictions_path(run, stage, "text"), items)


def test_gate_exits_by_its_verdict_and_leaves_a_file(run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["eval", str(run.root), "--stage", "sft", "--suite", "text", "--baseline", "language", "--max-drop", "0.02"]
    answered(run, "language", 200)
    for right, code, verdict in [(200, 0, "pass"), (120, 3, "fail"), (197, 5, "undecided")]:
        answered(run, "sft", right)
        assert main([*words, "--json"]) == code
        out = capsys.readouterr()
        told = json.loads(out.out)
        assert (told["gate"]["verdict"], told["accuracy"], told["chance"]) == (verdict, right / 200, 1.0)
        assert "--fresh evaluates anew" in out.err
        assert json.loads(gate_path(run, "sft").read_text())["verdict"] == verdict
    assert main(words) == 5
    assert "gate undecided" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--stage", "sfd", "--suite", "text"], "did you mean 'sft'"),
        (["--stage", "sft", "--suite", "tex"], "did you mean 'text'"),
        (["--stage", "sft", "--suite", "vqa"], "--set"),
        (["--stage", "sft", "--suite", "text", "--baseline", "language"], "--max-drop"),
        (["--stage", "sft", "--suite", "text", "--max-drop", "0.1"], "--baseline"),
        (["--stage", "sft", "--suite", "text", "--set", "held"], "held"),
    ],
)
def test_what_cannot_be_evaluated_exits_2_and_says_how_to_mend_it(
    run: RunFolder, words: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["eval", str(run.root), *words]) == 2
    assert says in capsys.readouterr().err


def test_the_newest_checkpoint_of_a_stage_is_the_stage(run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    answered(run, "sft", 150)
    older, newer = (run.path("checkpoints", "sft", f"step-00000{step}") for step in (1, 2))
    for folder in (older, newer):
        folder.mkdir(parents=True)
        (folder / "COMPLETE").touch()
        os.utime(folder / "COMPLETE", (0, 0))
    write_predictions(
        predictions_path(run, "sft", "text", checkpoint=older), [Prediction("i0", "spell", False, "b", "a")]
    )
    for folder, items in ((newer, 200), (older, 1)):
        assert main(["eval", str(folder), "--suite", "text", "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["items"] == items
    assert main(["eval", str(older), "--stage", "language", "--suite", "text"]) == 2
    assert main(["eval", str(run.root), "--suite", "text"]) == 2
    assert "give --stage sft" in (said := capsys.readouterr().err) and "with --stage" in said


def test_generate_refuses_before_it_loads_torch(run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", str(run.root), "hello"]) == 2
    assert "no complete checkpoint" in capsys.readouterr().err


SAVE = """
import sys
from megatron.core import dist_checkpointing
from megavlm.megatron_mm import backend
from megavlm.megatron_mm.checkpoints.forked import as_result
from megavlm.megatron_mm.config import ModelConfig, Parallel
from megavlm.megatron_mm.model import build_model
from megavlm.platform.config import load_recipe
from pathlib import Path

as_result()
backend.init_distributed(Parallel(), 1)
model = build_model(load_recipe(sys.argv[1]).section("model"), backend.build_context(Parallel()))
for seed, (stage, step) in enumerate((("language", 1), ("sft", 1), ("sft", 2))):
    backend.initialise(model, seed)
    folder = Path(sys.argv[2]) / "checkpoints" / stage / f"step-00000{step}"
    folder.mkdir(parents=True)
    dist_checkpointing.save(model.sharded_state_dict(), str(folder))
    (folder / "COMPLETE").touch()
backend.shutdown()
"""


@pytest.mark.multiprocess
def test_evaluates_and_generates_from_checkpoints(
    run: RunFolder, tmp_path: Path, ask: Callable, picture: Callable
) -> None:
    with ShardWriter(tmp_path / "held") as writer:
        for index in range(12):
            writer.write(*ask(f"i{index}", f"What is {index}?", "red", image=picture(index)))
    saved = subprocess.run([sys.executable, "-c", SAVE, str(tmp_path / "tiny.yaml"), str(run.root)], timeout=120)
    assert saved.returncode == 0
    words = ["eval", str(run.root), "--stage", "sft", "--suite", "text", "--blind", "--json"]
    done = in_a_process([*words, "--baseline", "language", "--max-drop", "0.02"])
    assert done.returncode == 5, done.stderr[-3000:]  # nothing learnt, nothing lost, and too few items to be sure
    told = json.loads(done.stdout)
    assert (told["items"], told["accuracy"], told["accuracy_blind"], told["gate"]["items_needed"]) == (12, 0, 0, 189)
    older = run.path("checkpoints", "sft", "step-000001")
    done = in_a_process(["eval", str(older), "--suite", "text", "--json"])
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads(done.stdout)
    assert (told["stage"], told["items"], told["checkpoint"]) == ("sft", 12, str(older))
    before, after = (
        read_predictions(Path(path)) for path in (told["predictions"], predictions_path(run, "sft", "text"))
    )
    assert [item.id for item in before] == [item.id for item in after]
    assert [item.answer for item in before] != [item.answer for item in after]  # other weights
    (tmp_path / "a.jpg").write_bytes(picture(1))
    words = ["generate", str(run.root), "Which?", "--image", str(tmp_path / "a.jpg"), "--max-new-tokens", "5", "--json"]
    one, two = in_a_process(words), in_a_process([*words, "--tp", "2"])
    assert (one.returncode, two.returncode) == (0, 0), one.stderr[-2000:] + two.stderr[-2000:]
    assert "Warning" not in one.stderr + two.stderr
    alone, split = json.loads(one.stdout), json.loads(two.stdout)
    assert alone["stage"] == "sft" and alone["tiles"] >= 1 and 1 <= len(alone["tokens"]) <= 5
    assert {k: v for k, v in alone.items() if k != "seconds"} == {k: v for k, v in split.items() if k != "seconds"}

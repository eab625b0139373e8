"""`megavlm generate --batch-file`: a file of questions, some of them bad, and the same questions one by one."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from megavlm.megatron_mm.inference.questions import Question, read_questions
from megavlm.platform.cli import main
from megavlm.platform.errors import InputError

STAGE = """\
  sft:
    train: [decoder]
    mixture: {weights: {text: 1}, sequence_length: 128, packs_per_batch: 2}
    steps: 4
    precision: fp32
    optimizer: {lr: 1e-2, min_lr: 1e-3, warmup_steps: 2}
"""


@pytest.fixture
def run(tmp_path: Path, write_recipe: Callable[..., Path]) -> Path:
    """A run folder with a checkpoint of random weights."""
    from megatron.core import dist_checkpointing

    from megavlm.megatron_mm import backend
    from megavlm.megatron_mm.checkpoints.forked import as_result
    from megavlm.megatron_mm.config import Parallel
    from megavlm.megatron_mm.model import build_model
    from megavlm.platform.config import load_recipe
    from megavlm.platform.runs import RunFolder

    recipe = load_recipe(str(write_recipe(tmp_path, STAGE, max_tiles=2, seed=1)))
    folder = RunFolder.create(tmp_path / "run", recipe.tree, recipe.origins, ["train"], may_change=["*"])
    checkpoint = folder.path("checkpoints", "sft", "step-000001")
    checkpoint.mkdir(parents=True)
    as_result()
    backend.init_distributed(Parallel(), 1)
    model = build_model(recipe.section("model"), backend.build_context(Parallel()))
    backend.initialise(model, 3)
    dist_checkpointing.save(model.sharded_state_dict(), str(checkpoint))
    backend.shutdown()
    (checkpoint / "COMPLETE").touch()
    return folder.root


def told(words: list[str], capsys: Any, code: int = 0) -> dict[str, Any]:
    assert main(["generate", *words, "--json"]) == code
    return json.loads(capsys.readouterr().out)


def test_a_file_is_answered_as_its_questions_one_by_one(run: Path, tmp_path: Path, capsys: Any) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for number in range(2):
        out = io.BytesIO()
        values = np.random.default_rng(number).integers(0, 256, (30, 60, 3), dtype=np.uint8)
        Image.fromarray(values).save(out, "PNG")
        (pictures / f"{number}.png").write_bytes(out.getvalue())
    (pictures / "broken.png").write_bytes(out.getvalue()[:-200])
    lines: list[Any] = [
        {"id": "a", "prompt": "What is it?", "images": ["0.png"]},
        {"id": "b", "prompt": "Many words " * 9, "max_new_tokens": 3},
        {"id": "outside", "prompt": "?", "images": ["../tiny.yaml"]},
        {"id": "broken", "prompt": "?", "images": ["broken.png"]},
        {"id": "misspelt", "prompt": "?", "temprature": 1},
        {"id": "c", "prompt": "And these?", "images": ["0.png", "1.png"], "temperature": 1.0, "seed": 5},
        {"prompt": "Hm?"},
    ]
    text = "\n".join([*map(json.dumps, lines), "", "not json", '{"id": "none"}'])
    (tmp_path / "questions.jsonl").write_text(text)
    words = [str(run), "--batch-file", str(tmp_path / "questions.jsonl"), "--image-folder", str(pictures)]
    words += ["--out", str(tmp_path / "answers.jsonl"), "--max-new-tokens", "6", "--batch-size", "4"]
    assert told([*words, "--dry-run"], capsys)["failed"] == 4
    summary = told(words, capsys)
    assert (summary["answers"], summary["failed"], summary["stage"]) == (4, 5, "sft")
    found = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    assert [line["id"] for line in found] == ["a", "b", "outside", "broken", "misspelt", "c", 6, 8, "none"]
    assert {line["id"] for line in found if "error" in line} == {"outside", "broken", "misspelt", 8, "none"}
    for line, answer in zip(lines, found, strict=False):
        if "error" not in answer:
            alone = [str(run), line["prompt"], "--max-new-tokens", str(line.get("max_new_tokens", 6))]
            alone += [word for image in line.get("images", []) for word in ("--image", str(pictures / image))]
            alone += ["--temperature", str(line.get("temperature", 0)), "--seed", str(line.get("seed", 1))]
            one = told(alone, capsys)
            assert {key: one[key] for key in ("text", "tokens", "prompt_tokens", "tiles")} == {
                key: answer[key] for key in ("text", "tokens", "prompt_tokens", "tiles")
            }


def test_a_prompt_or_a_file(run: Path, tmp_path: Path, capsys: Any) -> None:
    for words in ([], ["hello", "--batch-file", "x", "--out", "y"], ["--batch-file", "x"]):
        with pytest.raises(SystemExit) as ended:
            main(["generate", str(run), *words])
        assert ended.value.code == 2
    missing = ["--batch-file", str(tmp_path / "no.jsonl"), "--out", str(tmp_path / "out.jsonl")]
    assert "cannot read the questions" in told([str(run), *missing], capsys, code=2)["error"]["what"]
    long = "many words " * 20000
    assert "positions" in told([str(run), long], capsys, code=2)["error"]["what"]


def test_a_line_may_say_less_than_the_command_line(tmp_path: Path) -> None:
    (tmp_path / "q.jsonl").write_text('{"prompt": "a", "seed": 9}\n{"prompt": "b", "images": ["/etc/passwd"]}\n')
    first, second = read_questions(tmp_path / "q.jsonl", tmp_path, {"seed": 2, "temperature": 0.5})
    assert first == Question(id=0, prompt="a", seed=9, temperature=0.5)
    assert second.id == 1 and "leads out of its folder" in str(second.error)
    with pytest.raises(InputError):
        list(read_questions(tmp_path / "missing", tmp_path, {}))

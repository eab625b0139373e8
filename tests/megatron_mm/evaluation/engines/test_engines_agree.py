"""Tasks through lm-eval over our engines, against lm-eval's own Hugging Face model on the exported checkpoint."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from ranks import run_on_ranks

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

import asked  # noqa: E402

from megavlm.kernels import torchvision  # noqa: E402
from megavlm.megatron_mm.conversion import FORMATS  # noqa: E402
from megavlm.megatron_mm.conversion.exporting import plan_export, write_export  # noqa: E402
from megavlm.megatron_mm.data.build import StageData  # noqa: E402
from megavlm.megatron_mm.data.tokenizer import SHIPPED  # noqa: E402
from megavlm.megatron_mm.evaluation.code import Program, judge_code  # noqa: E402
from megavlm.megatron_mm.evaluation.engines.hf import HuggingFaceEngine  # noqa: E402
from megavlm.megatron_mm.evaluation.harness.language import run_tasks  # noqa: E402
from megavlm.megatron_mm.evaluation.harness.tasks import load_tasks  # noqa: E402
from megavlm.platform.config import load_recipe  # noqa: E402

pytestmark = [pytest.mark.multiprocess, pytest.mark.timeout(300)]
SANDBOX = pytest.mark.skipif(not shutil.which("bwrap"), reason="bubblewrap is not installed")
LAYOUTS = pytest.mark.parametrize("layout", ["dp2", "tp2", "pp2"])


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """tasks, checkpoint, results.json of every layout, and exported: the checkpoint as transformers' Qwen2."""
    work = tmp_path_factory.mktemp("engines")
    asked.write_tasks(work / "tasks")
    (work / "recipe.yaml").write_text(yaml.safe_dump(asked.RECIPE))
    run_on_ranks(HERE / "engines_worker.py", 2, work, seconds=240)
    spec = StageData.of(load_recipe(str(work / "recipe.yaml")), "sft")
    write_export(plan_export(FORMATS.load("qwen2")(), spec, work / "checkpoint", 1 << 20), work / "exported")
    shutil.copy(SHIPPED / "mini" / "tokenizer.json", work / "exported")
    told = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}
    (work / "exported" / "tokenizer_config.json").write_text(json.dumps(told | {"chat_template": asked.CHAT_TEMPLATE}))
    return work


@pytest.fixture(scope="module")
def ours(work: Path) -> dict[str, Any]:
    return json.loads((work / "results.json").read_text())


def through_lm_eval(model: Any, work: Path, names: Sequence[str], **options: Any) -> dict[str, dict[int, Any]]:
    """Task -> document -> the model's responses, by lm-eval alone."""
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_defaults=False, include_path=str(work / "tasks"))
    told = simple_evaluate(
        model, tasks=list(names), task_manager=manager, bootstrap_iters=0, confirm_run_unsafe_code=True, **options
    )
    return {name: {each["doc_id"]: each["resps"] for each in rows} for name, rows in told["samples"].items()}


@pytest.fixture(scope="module")
def their_model(work: Path) -> Any:
    """lm-eval's own, over the exported checkpoint."""
    torchvision.load()
    from lm_eval.models.huggingface import HFLM

    return HFLM(pretrained=str(work / "exported"), dtype="float32", batch_size=4, device="cpu")


@pytest.fixture(scope="module")
def theirs(work: Path, their_model: Any) -> dict[str, dict[int, Any]]:
    return through_lm_eval(their_model, work, list(asked.TASKS))


def same(found: dict[Any, Any], wanted: dict[int, Any], name: str) -> None:
    """Item by item: log-likelihoods to 1e-4, greedy choices and texts exactly."""
    assert {int(key) for key in found} == set(wanted) == set(range(len(asked.ROWS[name]["test"])))
    for number, theirs in wanted.items():
        ours = found[str(number)] if str(number) in found else found[number]
        for one, other in zip(ours, theirs, strict=True):
            for mine, reference in zip(one, other, strict=True):
                if isinstance(reference, tuple):
                    assert mine[0] == pytest.approx(reference[0], abs=1e-4) and mine[1] == reference[1]
                elif isinstance(reference, float):
                    assert mine == pytest.approx(reference, abs=1e-3)
                else:
                    assert mine == reference


@LAYOUTS
@pytest.mark.parametrize("name", list(asked.TASKS))
def test_every_item_is_what_lm_evals_own_model_says(
    ours: dict[str, Any], theirs: dict[str, dict[int, Any]], layout: str, name: str
) -> None:
    same(ours[layout]["samples"][name], theirs[name], name)


@LAYOUTS
def test_choices_and_answers_are_right_and_wrong(ours: dict[str, Any], layout: str) -> None:
    for name in {item["kind"] for item in ours[layout]["predictions"]}:
        found = [item["correct"] for item in ours[layout]["predictions"] if item["kind"] == name]
        assert len(found) == len(asked.ROWS[name]["test"]) and len(set(found)) == 2, name


def test_the_hugging_face_engine_says_the_same(work: Path, theirs: dict[str, dict[int, Any]]) -> None:
    engine = HuggingFaceEngine(work / "exported", batch=3)
    tasks = load_tasks(work / "tasks", list(asked.TASKS), None, work / "ours")
    samples, problems = run_tasks(engine, tasks, None, None, lambda: None)
    assert not problems
    for name, rows in samples.items():
        same({each["doc_id"]: each["resps"] for each in rows}, theirs[name], name)


@pytest.fixture(scope="module")
def their_turns(work: Path, their_model: Any) -> dict[str, dict[int, Any]]:
    options = {"apply_chat_template": True, "system_instruction": "Be brief.", "num_fewshot": 0}
    return through_lm_eval(their_model, work, ["local_choice", "local_sums"], **options)


@LAYOUTS
def test_conversations_are_what_lm_eval_makes_with_the_chat_template(
    ours: dict[str, Any], their_turns: dict[str, dict[int, Any]], layout: str
) -> None:
    """lm-eval counts the newline before an answer to the answer, which adds the same to every choice."""
    found = ours[layout]["chat"]
    same(found["local_sums"], their_turns["local_sums"], "local_sums")
    for number, theirs in their_turns["local_choice"].items():
        mine, reference = ([told[0][0] for told in each] for each in (found["local_choice"][str(number)], theirs))
        assert [one - mine[0] for one in mine] == pytest.approx([one - reference[0] for one in reference], abs=1e-4)
    assert ours[layout]["answers"] == ours["dp2"]["answers"] and all(ours[layout]["answers"])


@pytest.fixture(scope="module")
def their_programs(theirs: dict[str, dict[int, Any]]) -> dict[str, bool]:
    programs = [
        Program(f"local_code/{k}", row["prompt"] + said, f"{row['test']}check({row['entry_point']})")
        for k, row in enumerate(asked.PROGRAMS)
        for said in theirs["local_code"][k][0]
    ]
    return {outcome.id: outcome.passed for outcome in judge_code(programs)}


@LAYOUTS
@SANDBOX
def test_programs_pass_where_those_of_lm_evals_own_model_do(
    ours: dict[str, Any], their_programs: dict[str, bool], layout: str
) -> None:
    found = {item["id"]: item["correct"] for item in ours[layout]["predictions"] if item["kind"] == "local_code"}
    assert found == their_programs

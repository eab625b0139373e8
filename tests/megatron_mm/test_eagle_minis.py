"""The minis of EAGLE and MMFuser: what each stage builds and trains, and the way of an expert through pre-alignment."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from megatron.core.dist_checkpointing import load_plain_tensors
from ranks import RankFailed, run_on_ranks

from megavlm.megatron_mm import backend
from megavlm.megatron_mm.checkpoints.listing import latest
from megavlm.megatron_mm.config import Parallel, Stages
from megavlm.megatron_mm.contracts import BuildContext
from megavlm.megatron_mm.data.build import StageData
from megavlm.megatron_mm.model import build_model
from megavlm.megatron_mm.training.packs import ensure_packs
from megavlm.megatron_mm.training.plan import make_plan
from megavlm.megatron_mm.training.stages import unfinished
from megavlm.platform.config import load_recipe
from megavlm.platform.runs import RunFolder

WORKER = Path(__file__).with_name("eagle_minis_worker.py")
MINIS = ("eagle-x4-mini", "eagle-x5-mini", "mmfuser-mini")
EXPERTS = {
    "eagle-x4-mini": ["clip", "convnext", "eva02", "pix2struct"],
    "eagle-x5-mini": ["clip", "convnext", "sam", "eva02", "pix2struct"],
}
BEFORE, KILLED, JOINED = ["language", "align_clip", "align_sam"], "align_eva02", "joint"
Tensors = dict[str, torch.Tensor]


@pytest.mark.parametrize("name", MINIS)
def test_what_a_stage_builds_and_trains_is_what_its_plan_says(name: str, one_process: BuildContext) -> None:
    recipe = load_recipe(name)
    for planned in (stage for stage in make_plan(recipe).stages if stage.steps):
        spec = StageData.of(recipe, planned.name)
        with torch.device("meta"):
            built = build_model(spec.model, one_process)
        built.freeze(spec.stage.train)
        parameters = [p for _, p in built.named_parameters()]
        assert planned.parameters == sum(p.numel() for p in parameters)
        assert planned.trained_parameters == sum(p.numel() for p in parameters if p.requires_grad)


@pytest.mark.parametrize("name", EXPERTS)
def test_each_expert_is_aligned_by_itself_before_the_frozen_language_model(name: str) -> None:
    recipe = load_recipe(name)
    stages: Stages = recipe.section("stages")
    aligns = [f"align_{expert}" for expert in EXPERTS[name]]
    assert list(stages.root) == ["language", *aligns, "joint", "sft"]
    for expert, align in zip(EXPERTS[name], aligns, strict=True):
        assert [shape.expert for shape in StageData.of(recipe, align).model.encoder.maps] == [expert]
        assert stages[align].train == [f"encoder.{expert}", "connector"]
    assert stages["joint"].after == ["language", *aligns] and stages["joint"].fresh == ["connector"]
    assert [shape.expert for shape in StageData.of(recipe, "joint").model.encoder.maps] == EXPERTS[name]
    assert stages["sft"].train == ["encoder", "connector", "decoder"]


@pytest.fixture
def run(recipe: Path, tmp_path: Path) -> RunFolder:
    """Three experts of eagle-x5-mini over a few pictures, a step for each stage but the one that is killed."""
    names, sets = [*BEFORE, KILLED, JOINED], recipe.parent
    mixture = "{weights: {vqa: 1}, sequence_length: 256, packs_per_batch: 1}"
    words = [f"data.sets={{text: {sets}/text, vqa: {sets}/vqa}}", "model.encoder.use=[clip, sam, eva02]"]
    for name in names:
        words += [f"stages.{name}.{word}" for word in ("parallel.tp=1", "steps=1", "evaluate=null")]
        words += [f"stages.{name}.mixture={mixture.replace('vqa', 'text') if name == 'language' else mixture}"]
    words += [f"stages.{KILLED}.steps=4", f"stages.{KILLED}.checkpoint.every=2", f"stages.{JOINED}.train=[connector]"]
    words += [f"stages.{JOINED}.after=[{', '.join(names[:-1])}]"]
    words += [f"stages.{name}=null" for name in ("align_convnext", "align_pix2struct", "sft", "gate")]
    loaded = load_recipe("eagle-x5-mini", words)
    folder = RunFolder.create(tmp_path / "run", loaded.tree, loaded.origins, ["train"])
    for name in names:
        ensure_packs(folder, StageData.of(loaded, name))
    return folder


def tensors(run: RunFolder, stage: str) -> Tensors:
    """The weights in a stage's newest checkpoint, by megatron-core's own reader."""
    folder = latest(run, stage)
    assert folder is not None
    found = load_plain_tensors(str(folder))
    return {key: value for key, value in found.items() if key.startswith(("encoder.", "connector.", "decoder."))}


def written(run: RunFolder) -> dict[str, int]:
    """When each file of the stages that are done was last written, in ns."""
    folders = [run.path(kind, name) for kind in ("checkpoints", "stages") for name in BEFORE]
    return {str(path): path.stat().st_mtime_ns for folder in folders for path in folder.rglob("*") if path.is_file()}


@pytest.mark.multiprocess
@pytest.mark.timeout(200)
def test_a_killed_stage_redoes_itself_alone_and_the_joint_one_gets_every_experts_weights(
    run: RunFolder, on_ranks: Callable[..., None]
) -> None:
    stages: Stages = load_recipe(str(run.path("config.yaml"))).section("stages")
    with pytest.raises(RankFailed, match="exit code -9"):
        run_on_ranks(WORKER, 1, run.root, ",".join([*BEFORE, KILLED]), len(BEFORE) * 2 + 5)  # in its fourth step
    assert unfinished(run, stages) == [KILLED, JOINED]
    before = written(run)
    on_ranks(WORKER, 1, run.root, ",".join(unfinished(run, stages)), 0)
    assert written(run) == before and not unfinished(run, stages)
    steps = [(line["attempt"], line["stage"], line["step"]) for line in run.metrics()]
    assert steps == [
        *((1, name, 1) for name in BEFORE), *((1, KILLED, step) for step in (1, 2, 3)),
        *((2, KILLED, step) for step in (3, 4)), (2, JOINED, 1),
    ]  # fmt: skip

    backend.init_distributed(Parallel(), seed=1)
    try:
        language, *aligned, joint = (tensors(run, name) for name in [*BEFORE, KILLED, JOINED])
    finally:
        backend.shutdown()
    for expert, of in zip(("clip", "sam", "eva02"), aligned, strict=True):
        own = {key for key in joint if key.startswith(f"encoder.experts.{expert}.")}
        assert own and own == {key for key in of if key.startswith("encoder.")}
        assert all(torch.equal(joint[key], of[key]) for key in own)
        assert any(not torch.equal(joint[key], language[key]) for key in own)
    assert all(torch.equal(joint[key], language[key]) for key in joint if key.startswith("decoder."))
    outer = "connector.projector.2.weight"  # of one shape everywhere
    assert all(not torch.equal(joint[outer], of[outer]) for of in aligned)

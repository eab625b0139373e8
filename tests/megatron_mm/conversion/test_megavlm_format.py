"""The project's own layout: every parameter of any model as it is, and a recipe that it can be read back with."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from megatron.core import dist_checkpointing
from safetensors.torch import load_file
from torch import Tensor

from megavlm.megatron_mm import backend
from megavlm.megatron_mm.checkpoints.listing import checkpoint_path
from megavlm.megatron_mm.config import AXES, Parallel
from megavlm.megatron_mm.conversion.exporting import plan_export, write_export
from megavlm.megatron_mm.conversion.importing import Source, plan_import, write_import
from megavlm.megatron_mm.conversion.megavlm import MegaVLM
from megavlm.megatron_mm.conversion.published import Published
from megavlm.megatron_mm.conversion.verb import format_of
from megavlm.megatron_mm.data.build import StageData
from megavlm.megatron_mm.model import build_model
from megavlm.platform.config import load_recipe
from megavlm.platform.errors import ConfigError, InputError
from megavlm.platform.runs import RunFolder

RECIPE = """
model:
  tiling: {tile: 28}
  encoder: {name: internvit, image_size: 28, patch_size: 7, layers: 2, hidden: 45, heads: 9, dummy_heads: 7, ffn: 56}
  connector: {name: pixel_shuffle_mlp, hidden: 48}
  injection: INJECTION
  decoder: {name: llama, layers: 2, hidden: 32, heads: 4, kv_heads: 2, ffn: 48, vocab: 512, max_positions: 512,
            rope_base: 5.0e6, norm_eps: 1.0e-5}
data: {tokenizer: mini, template: {name: chatml, system: Answer.}, sets: {pairs: somewhere}}
stages:
  pretrain: &stage
    train: [connector]
    steps: 1
    optimizer: {lr: 1e-3}
    mixture: {weights: {pairs: 1}, sequence_length: 512, packs_per_batch: 1}
  sft: {<<: *stage, after: [pretrain], model: {tiling: {max_tiles: 2}}, template: {name: chatml, system: Be brief.}}
"""


class Made(NamedTuple):
    """A stage, its model's parameters by axis and name, and their export."""

    spec: StageData
    parameters: dict[str, Tensor]
    exported: Path


@pytest.fixture(
    scope="module", params=["{name: inline, tags: 2d_grid}", "{name: cross_attention, every: 2}"], ids=["d", "x"]
)
def made(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Made]:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("own")
    (folder / "yi.yaml").write_text(RECIPE.replace("INJECTION", request.param))
    recipe = load_recipe(str(folder / "yi.yaml"))
    spec = StageData.of(recipe, "sft")
    backend.init_distributed(Parallel(), seed=1)
    model = build_model(spec.model, backend.build_context(Parallel(), "fp32"))
    backend.initialise(model, seed=3)
    parameters = {f"{axis}.{name}": p.detach().clone() for axis in AXES for name, p in model.axis(axis)}
    assert len(parameters) == len(list(model.parameters()))
    checkpoint = checkpoint_path(RunFolder.create(folder / "run", recipe.tree, recipe.origins, []), "sft", 1)
    checkpoint.mkdir(parents=True)
    dist_checkpointing.save(model.sharded_state_dict(), str(checkpoint))
    write_export(plan_export(MegaVLM(), spec, checkpoint, max_shard=64_000), folder / "exported")
    yield Made(spec, parameters, folder / "exported")
    backend.shutdown()


def test_every_parameter_is_there_as_it_is(made: Made) -> None:
    index = json.loads((made.exported / "model.safetensors.index.json").read_text())["weight_map"]
    held = {name: t for file in set(index.values()) for name, t in load_file(made.exported / file).items()}
    assert held.keys() == made.parameters.keys() and len(held) > 40
    injected = [name for name in held if name.startswith("injection.")]
    assert bool(injected) == (made.spec.model.injection.name == "cross_attention")
    assert all(torch.equal(held[name], made.parameters[name]) for name in held)


def test_it_is_read_back_with_the_recipe_that_lies_there(made: Made, tmp_path: Path) -> None:
    """No other file is needed: the stage as it was trained, without the stages before it."""
    recipe = load_recipe(str(made.exported / "recipe.yaml"))
    spec = StageData.of(recipe, "sft")
    assert spec.model == made.spec.model and spec.data == made.spec.data and spec.stage.after == []
    published = Published(made.exported)
    fmt = format_of(published, None)
    assert isinstance(fmt, MegaVLM)
    plan = plan_import(spec.model, [Source(published, fmt, list(fmt.maps))])
    checkpoint = write_import(plan, RunFolder.create(tmp_path / "start", recipe.tree, recipe.origins, []), "sft")
    write_export(plan_export(fmt, spec, checkpoint, max_shard=64_000), tmp_path / "again")
    names = sorted(path.name for path in made.exported.iterdir())
    assert [path.name for path in sorted((tmp_path / "again").iterdir())] == names and "tokenizer.json" in names
    assert all((tmp_path / "again" / n).read_bytes() == (made.exported / n).read_bytes() for n in names)


def test_another_model_is_refused_by_its_key(made: Made) -> None:
    published, own = Published(made.exported), made.spec.model
    for axis, key, value in (("decoder", "rope_base", 1e4), ("encoder", "norm_eps", 1e-5), ("connector", "hidden", 64)):
        part = getattr(own, axis)
        other = own.model_copy(update={axis: part.model_copy(update={key: value})})
        with pytest.raises(ConfigError, match=f"{axis}.{key}") as error:
            plan_import(other, [Source(published, MegaVLM(), [axis])])
        assert f"set model.{axis}.{key}={getattr(part, key)}" == error.value.fix
    longer = own.decoder.model_copy(update={"max_positions": 1024})
    plan_import(own.model_copy(update={"decoder": longer}), [Source(published, MegaVLM(), list(MegaVLM.maps))])


@pytest.mark.parametrize("config", [{}, {"model": 3}, {"model": {"encoder": {}}}])
def test_a_configuration_of_another_format_is_refused(made: Made, config: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="no `model` with encoder"):
        MegaVLM().compare(made.spec.model, config, "config.json")

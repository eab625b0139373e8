"""A sample as training packs it, as evaluation judges it and as generation is asked it: one and the same beginning."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from megavlm.megatron_mm.contracts import PackedBatch
from megavlm.megatron_mm.data.build import StageData, build_manifest
from megavlm.megatron_mm.data.loader import open_loader
from megavlm.megatron_mm.data.measure import template
from megavlm.megatron_mm.data.samples import read_conversation
from megavlm.megatron_mm.evaluation.items import read_items
from megavlm.megatron_mm.evaluation.predict import Packer
from megavlm.megatron_mm.inference.prompt import encode_prompt
from megavlm.platform.config import load_recipe

LENGTH = 96
INJECTIONS = ["{name: inline}", "{name: cross_attention, every: 1}", "{name: hybrid, every: 1}"]


def told(batch: PackedBatch, length: int) -> dict[str, Any]:
    """What the first `length` positions are, and what they see."""
    fields = {"tokens": batch.tokens[:, :length], "position_ids": batch.position_ids[:, :length], "tiles": batch.tiles,
              "visual_index": batch.visual_index, "inline_tiles": batch.inline_tiles}  # fmt: skip
    if batch.context is not None:
        context = batch.context
        fields |= {"tags": context.tags[:, :length], "since": context.since, "beside": context.tiles,
                   "tag_ids": context.tag_ids, "tag_tiles": context.tag_tiles}  # fmt: skip
        assert (context.until >= length).all()
    return {name: value if value is None else value.tolist() for name, value in fields.items()}


@pytest.mark.parametrize("injection", INJECTIONS)
@pytest.mark.parametrize("frame", ["{name: chatml}", "{name: chatml, image_start: <Image>, image_end: </Image>}"])
def test_a_prompt_is_the_beginning_of_what_was_trained_on(
    make_recipe: Callable[..., Path], tmp_path: Path, injection: str, frame: str
) -> None:
    recipe = make_recipe()
    recipe.write_text(recipe.read_text().replace("packs_per_batch: 4", "packs_per_batch: 4, pack: false"))
    changes = [f"model.injection={injection}", f"data.template={frame}", "data.template.system="]
    spec = StageData.of(load_recipe(str(recipe), changes), "only")
    manifest, tokenizer, reader = build_manifest(spec, tmp_path / "packs"), spec.tokenizer(), spec.open_sets()["vqa"]
    batches, seen = open_loader(spec, manifest), set()
    items, _ = read_items(reader, spec.model.tiling)
    packer = Packer(reader, template(spec.model, tokenizer, spec.data.template), spec.model, tokenizer, LENGTH)
    for step in range(manifest.batches):
        batch = batches.batch(step)
        tiles = batch.tiles.split([manifest[row].tiles for row in batch.rows])
        for row, pack, pixels in zip(batch.rows, batch.packs, tiles, strict=True):
            [entry] = manifest[row].entries
            if entry.set == "text" or entry.index in seen:
                continue
            seen.add(entry.index)
            pack = replace(pack, tiles=pixels)
            sample = read_conversation(reader.read(entry.index))
            prompt = encode_prompt(sample.messages[:-1], sample.images, tokenizer, spec.model, spec.data)
            assert told(prompt, prompt.length) == told(pack, prompt.length)
            judged = packer.pack([items[entry.index]])
            assert told(judged.batch, entry.tokens) == told(pack, entry.tokens)
            assert torch.equal(judged.labels, pack.labels[0])
    assert seen == {0, 1, 2}

"""What a step holds: published step contents, the real packer, and sums over a manifest written by hand."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from megavlm.megatron_mm.config import Mixture
from megavlm.megatron_mm.data.build import StageData
from megavlm.megatron_mm.data.columns import SizesInMemory
from megavlm.megatron_mm.data.items import Ragged
from megavlm.megatron_mm.data.manifest import Manifest
from megavlm.megatron_mm.data.mixture import global_batches
from megavlm.megatron_mm.data.write import manifest_writer
from megavlm.megatron_mm.planning.load import load_of
from megavlm.megatron_mm.training.flops import step_flops, visual_tokens
from megavlm.platform.cli import main
from megavlm.platform.config import load_recipe
from megavlm.platform.errors import ConfigError
from megavlm.platform.images import ImageTiles
from megavlm.platform.shards import ShardReader
from megavlm.platform.shards.reader import SHARDS


def stage(recipe: str, name: str, *overrides: str) -> StageData:
    return StageData.of(load_recipe(recipe, list(overrides)), name)


@pytest.mark.parametrize(
    ("recipe", "tokens", "visual", "beside"),
    [("nvlm-d-34b", 2816, 7 * 256, 0), ("nvlm-x-34b", 1024, 0, 7 * 256), ("nvlm-h-34b", 1280, 256, 6 * (256 + 5))],
)
def test_a_conversation_is_what_table_3_of_nvlm_has(recipe, tokens, visual, beside):
    """Arxiv 2409.11402, table 3: lengths of the sequence with 6 tiles and a thumbnail of 256 tokens each."""
    load = load_of(stage(recipe, "sft"))
    assert (load.tokens / load.samples, load.of.tiles, load.packs) == (tokens, 7, load.samples)
    assert (load.of.visual, load.of.context) == (visual, beside)
    assert load.of.pairs == tokens * beside and "7 tiles" in load.origin


def test_an_eagle_sample_is_an_image_of_1024_tokens_and_fills_its_pack():
    """Arxiv 2408.15998: 1,024 visual tokens in 2,048 positions, 128 samples to a step: no pack has room for two."""
    load = load_of(stage("eagle-x5-7b", "sft"))
    assert (load.packs, load.samples, load.of.visual, load.tokens) == (128, 128, 1024, 128 * 2048)
    assert (load.most.tiles, load.most.samples) == (1, 1)


def test_an_eve_photo_costs_its_rows_and_columns():
    """Arxiv 2406.11832: longer side 672, patches of 28 after pooling: 24 x 18 cells, 18 ends of rows and one token."""
    load = load_of(stage("eve-7b", "prealign"))
    assert load.of.visual / load.of.samples == pytest.approx(24 * 18 + 18 + 1)
    assert load.samples == 512 and load.tokens == 512 * (451 + 256)


def sizes(tokens: np.ndarray, images: list[ImageTiles | None]) -> SizesInMemory:
    """One shard of samples with at most one image each."""
    ends = np.cumsum([0, *(image is not None for image in images)], dtype=np.int64)
    values = np.array([image for image in images if image], np.int16).reshape(-1, 3)
    return SizesInMemory(np.array([0, len(tokens)]), tokens.astype(np.int32), tokens.astype(np.int32),
                         Ragged(values, ends))  # fmt: skip


@pytest.mark.parametrize(
    ("recipe", "name", "text"),
    [("eve-7b", "prealign", 256), ("eagle-x5-7b", "pretrain", 256), ("mmfuser-7b", "pretrain", 256)],
)
def test_the_real_packer_needs_as_many_packs(recipe, name, text):
    """Photos of many shapes and texts of many lengths, with the averages that are assumed."""
    spec, rng = stage(recipe, name), np.random.default_rng(0)
    load, count = load_of(spec), 4096
    photos = [spec.model.tiling.plan(*(int(side) for side in rng.integers(700, 1100, 2))) for _ in range(count)]
    seen = np.array([spec.model.tile_tokens(photo) for photo in photos])
    tokens = seen + rng.integers(1, 2 * text, count)
    scaled = seen + (tokens - seen) * (load.tokens / load.samples * count - seen.sum()) / (tokens - seen).sum()
    told = sizes(np.minimum(scaled, spec.stage.mixture.sequence_length), list(photos))
    mixture = spec.stage.mixture.model_copy(update={"sets": {}, "weights": {"a": 1}})
    batches = list(itertools.islice(global_batches(mixture, {"a": told}, 0), count // load.samples))
    packs = sum(map(len, batches)) / len(batches)
    assert load.packs == pytest.approx(packs, rel=0.05)


def test_told_samples_are_taken_as_they_are_told():
    load = load_of(stage("nvlm-d-34b", "sft"), sample_tokens=1000, sample_tiles=3)
    assert (load.of.tiles / load.of.samples, load.most.tiles, load.most.samples) == (pytest.approx(3), 9, 3)
    assert load.packs == np.ceil(128 / (0.93 * 3.2)) and load.origin.startswith("as told")
    text = load_of(stage("nvlm-d-34b", "sft"), sample_tokens=1600, sample_tiles=0)
    assert (text.of.tiles, text.of.visual, text.amounts.seeing_tokens) == (0, 0, 0)


@pytest.mark.parametrize(
    ("tokens", "tiles", "what"), [(500, 7, "1792 visual"), (9000, 1, "a pack holds 3200"), (3000, 8, "8 tiles")]
)
def test_impossible_samples_are_refused_with_their_sizes(tokens, tiles, what):
    with pytest.raises(ConfigError, match=what):
        load_of(stage("nvlm-d-34b", "sft"), tokens, tiles)


def test_a_share_of_text_has_no_image():
    load = load_of(stage("nvlm-d-34b", "sft", "stages.sft.mixture.text_share=0.25"))
    assert load.amounts.tiles == 96 * 7 and load.tokens == 96 * 2816 + 32 * 1024
    assert load.amounts.seeing_tokens == 96 * 2816 and "25%" in load.origin
    tokens = ["stages.sft.mixture.text_share=0.25", "stages.sft.mixture.text_share_of=tokens"]
    load = load_of(stage("nvlm-d-34b", "sft", *tokens))
    assert 1 - load.amounts.seeing_tokens / load.tokens == pytest.approx(0.25, abs=0.01)


def test_the_heaviest_pack_holds_as_many_tiles_as_there_is_room_for():
    """Of NVLM-D: two samples of 4 tiles and a thumbnail (5 x 261 + 64 tokens each) and no third."""
    load = load_of(stage("nvlm-d-34b", "sft"))
    assert load.most.tiles == 10 and 2 * (5 * 261 + 64) <= 3200 < 3 * (5 * 261 + 64)
    for recipe, name in (("eve-7b", "sft"), ("nvlm-x-34b", "sft"), ("mmfuser-7b", "sft"), ("eve-v2-7b", "layers-hd")):
        load = load_of(stage(recipe, name))
        assert load.most.visual <= load.most.positions and load.most.tiles >= np.floor(load.of.tiles), recipe


@pytest.fixture
def packed(tmp_path: Path) -> Callable[[StageData, SizesInMemory], Manifest]:
    """Writes the manifest of a stage over samples of one set."""

    def make(spec: StageData, told: SizesInMemory) -> Manifest:
        mixture = Mixture.parse({"weights": {"a": 1}, "sequence_length": 1280, "packs_per_batch": 4})
        shards = pa.table([["0.tar"], [told.starts[-1]], ["0"]], schema=SHARDS)
        with manifest_writer(tmp_path / "packs") as writer:
            writer.describe({"sequence_length": 1280}, {"a": ShardReader(tmp_path, shards)})
            for batch in itertools.islice(global_batches(mixture, {"a": told}, 0), 3):
                writer.add(batch)
        return Manifest(tmp_path / "packs")

    return make


def test_a_manifest_is_summed_up_as_it_is(packed):
    spec, rng = stage("nvlm-h-34b", "sft"), np.random.default_rng(1)
    kinds = [None, ImageTiles(1, 1, 1), ImageTiles(3, 2, 1), ImageTiles(7, 3, 2)]
    images = [kinds[k] for k in rng.integers(0, 4, 200)]
    manifest = packed(spec, sizes(rng.integers(300, 600, 200), images))
    load = load_of(spec, manifest=manifest)
    packs = [pack for step in range(3) for pack in manifest.batch(step)]
    entries = [entry for pack in packs for entry in pack.entries]
    context = {1: 0, 3: 2 * 261, 7: 6 * 261}
    beside = [sum(context[image.tiles] for image in entry.images) for entry in entries]
    assert load.packs == 4 and load.of.samples == len(entries) / 12
    assert load.of.tiles == sum(entry.tiles for entry in entries) / 12
    assert load.of.visual == 256 * sum(bool(entry.images) for entry in entries) / 12
    assert load.of.context == sum(beside) / 12
    pairs = sum(entry.tokens * each for entry, each in zip(entries, beside, strict=True))
    assert load.of.pairs == pytest.approx(pairs / 12)
    empty = sum((1280 - pack.tokens) ** 2 for pack in packs)
    assert load.of.squares == pytest.approx((sum(entry.tokens**2 for entry in entries) + empty) / 12)
    assert load.most.tiles == max(pack.tiles for pack in packs)
    assert load.tokens == pytest.approx(sum(pack.tokens for pack in packs) / 3, abs=1)


def test_a_plan_is_of_the_manifest_that_is_given(packed, capsys):
    manifest = packed(stage("nvlm-h-34b", "sft"), sizes(np.full(200, 400), [ImageTiles(7, 3, 2)] * 200))
    words = ["plan", "nvlm-h-34b", "--gpus", "64", "--gpu", "h100", "--packs", str(manifest.path), "--top", "0"]
    assert main([*words, "--json", "--stage", "sft"]) in (0, 3)
    assert json.loads(capsys.readouterr().out)["stages"]["sft"]["load"].endswith(str(manifest.path))
    assert main(words) == 2 and "name it with --stage" in capsys.readouterr().err


@pytest.mark.parametrize("recipe", ["nvlm-x-34b", "nvlm-h-34b", "nvlm-d-34b", "eve-7b", "eagle-x5-7b"])
def test_model_flops_count_what_the_load_holds(recipe):
    spec = stage(recipe, "sft")
    load = load_of(spec)
    beside = load.amounts.context_tiles * spec.model.tokens_per_tile
    assert visual_tokens(spec.model, load.amounts) - beside == pytest.approx(load.of.visual * load.packs)
    six = 6 * spec.model.decoder.parameters() * load.tokens
    assert step_flops(spec.model, spec.stage.train, load.amounts) > six * 0.9


def test_torch_stays_away():
    code = "import sys, megavlm.megatron_mm.planning.load; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)

"""Packs of images of every shape: which pixels and tokens stand where, and what a sample costs, image by image."""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import varied_layouts_worker as varied
from PIL import Image

from megavlm.megatron_mm.contracts import PackedBatch, StepBatch
from megavlm.megatron_mm.data.assemble import GREY
from megavlm.megatron_mm.data.build import StageData, build_manifest
from megavlm.megatron_mm.data.loader import open_loader
from megavlm.megatron_mm.data.manifest import Entry, Manifest, substitute
from megavlm.megatron_mm.data.measure import template
from megavlm.megatron_mm.data.samples import image_fields
from megavlm.megatron_mm.data.shares import Grid, Seat
from megavlm.megatron_mm.evaluation.items import read_items
from megavlm.megatron_mm.evaluation.predict import Packer
from megavlm.megatron_mm.tiles import VariedTiles, joined
from megavlm.platform.shards import ShardReader, ShardWriter

CELL = 14
MODELS = ["eve", "eve_v2"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("varied-loader")
    varied.prepare(made)
    return made


def opened(folder: Path, name: str, stage: str = "packed") -> tuple[StageData, Manifest, list[dict[str, Any]], Any]:
    spec, packs = varied.opened(folder, name, stage)
    events: list[dict[str, Any]] = []
    manifest = Manifest(packs)
    return spec, manifest, events, open_loader(spec, manifest, lambda kind, **told: events.append(told))


def shown(folder: Path, spec: StageData, entry: Entry) -> Iterator[np.ndarray]:
    """An entry's images, decoded by Pillow and stretched to what the entry says, [3, height, width]."""
    fields = ShardReader(folder / entry.set).read(entry.index).fields
    for name, cut in zip(image_fields(fields), entry.images, strict=True):
        size = (cut.columns * CELL, cut.rows * CELL)
        if name == "png" and entry.index == varied.CUT:
            yield np.full((3, *size[::-1]), GREY, np.uint8)
            continue
        image = Image.open(io.BytesIO(fields[name])).convert("RGB").resize(size, Image.Resampling.BICUBIC)
        yield np.asarray(image).transpose(2, 0, 1)


def tokens_of(tile: np.ndarray) -> int:
    """[class, row 0, end, row 1, end, ...]."""
    return 1 + tile.shape[1] // CELL * (tile.shape[2] // CELL + 1)


@pytest.mark.parametrize("name", MODELS)
def test_a_batch_holds_its_samples_images_one_after_the_other(folder: Path, name: str) -> None:
    spec, manifest, _, loader = opened(folder, name)
    most = 0  # images of a sample
    for step in range(manifest.batches):
        batch = loader.batch(step)
        entries = [entry for row in batch.rows for entry in manifest[row].entries]
        wanted = [tile for entry in entries for tile in shown(folder, spec, entry)]
        assert isinstance(batch.tiles, VariedTiles) and batch.tiles.sizes == batch.sizes
        assert batch.sizes == tuple(tile.shape[1:] for tile in wanted)
        assert batch.shares.work == [tokens_of(tile) for tile in wanted]
        for found, tile in zip(batch.tiles.each(), wanted, strict=True):
            assert np.array_equal(found, tile)
        most = max(most, *(len(entry.images) for entry in entries))
    assert most == 2


@pytest.mark.parametrize("name", MODELS)
def test_every_sample_has_places_for_its_own_images_tokens(folder: Path, name: str) -> None:
    spec, manifest, _, loader = opened(folder, name)
    batch = loader.batch(0)
    for row, pack in zip(batch.rows, batch.packs, strict=True):
        ends, sizes = pack.cu_seqlens.tolist(), iter(pack.sizes)
        assert isinstance(pack.tiles, VariedTiles) and len(pack.tiles) == 0 and pack.tiles.each() == []
        assert len(pack.sizes) == manifest[row].tiles
        for entry, (start, end) in zip(manifest[row].entries, itertools.pairwise(ends), strict=False):
            tiles = list(shown(folder, spec, entry))
            assert [next(sizes) for _ in tiles] == [tile.shape[1:] for tile in tiles]
            places = [place for place in pack.visual_index.tolist() if start <= place < end]
            assert len(places) == sum(map(tokens_of, tiles)) and end - start == entry.tokens
            runs = 1 + sum(b - a > 1 for a, b in itertools.pairwise(places)) if places else 0
            assert runs == len(tiles)  # words stand between the two images of a sample
            assert (pack.labels[0, places[:-1]] == -100).all()


@pytest.mark.parametrize(("dp", "pp", "tp"), [(2, 1, 1), (3, 1, 2), (2, 2, 1)])
def test_every_layout_decodes_each_tile_once(folder: Path, dp: int, pp: int, tp: int) -> None:
    *_, loader = opened(folder, "eve")
    grid, whole = Grid(dp, pp, 1), loader.batch(1)
    parts = [loader.batch(1, Seat(grid, member, tp, rank)) for member in range(grid.size) for rank in range(tp)]
    ordered = sorted(parts, key=lambda part: _first(part, grid, tp, parts))
    together = joined([part.tiles for part in ordered])
    assert together.sizes == parts[0].sizes and all(part.sizes == parts[0].sizes for part in parts)
    pixels = {(tile.shape[1:], tile.numpy().tobytes()) for tile in whole.tiles.each()}
    assert {(tile.shape[1:], tile.numpy().tobytes()) for tile in together.each()} == pixels
    assert len(together) == len(whole.tiles)


def _first(part: StepBatch, grid: Grid, tp: int, parts: list[StepBatch]) -> int:
    member, rank = divmod(next(k for k, each in enumerate(parts) if each is part), tp)
    return part.shares.decodes(member, tp, rank).start


@pytest.mark.parametrize("name", MODELS)
def test_a_broken_image_is_grey_and_then_its_substitute_s(folder: Path, name: str) -> None:
    """A substitute's images are cut alike: squares, among these sizes. All else of the batch stays as it is."""
    spec, manifest, events, loader = opened(folder, name)
    step = next(k for k in range(manifest.batches) if any(map(_is_broken, _entries(manifest, k))))
    batch = loader.batch(step)
    assert batch.problems == ((_number(manifest, "vqa"), varied.CUT),) and not events
    settled = loader.settled(batch, set)
    (told,) = events
    assert (told["key"], told["reason"]) == ("v9", "truncated")
    assert told["instead"] in {f"v{entry.substitute}" for entry in _entries(manifest, step) if _is_broken(entry)}
    entries = [substitute(e) if _is_broken(e) else e for row in batch.rows for e in manifest[row].entries]
    wanted = [tile for entry in entries for tile in shown(folder, spec, entry)]
    assert settled.sizes == batch.sizes and len(settled.tiles) == len(wanted)
    for found, tile in zip(settled.tiles.each(), wanted, strict=True):
        assert np.array_equal(found, tile)


def _entries(manifest: Manifest, step: int) -> list[Entry]:
    return [entry for pack in manifest.batch(step) for entry in pack.entries]


def _is_broken(entry: Entry) -> bool:
    return bool(entry.images) and entry.index == varied.CUT


def _number(manifest: Manifest, name: str) -> int:
    return [told["name"] for told in manifest.sets].index(name)


def test_a_line_too_thin_to_count_and_one_longer_than_a_pack_are_left_out_by_name(tmp_path: Path) -> None:
    """4 * sqrt(70 million) steps are more than int16 holds; 4 * sqrt(4000) are more tokens than a pack's 160."""
    row = io.BytesIO()
    Image.new("1", (70_000_000, 1)).save(row, "PNG")
    with ShardWriter(tmp_path / "text") as writer:
        writer.write("t", {"json": varied.talk("How many?", "9")})
    with ShardWriter(tmp_path / "vqa") as writer:
        for key, data in (("thin", row.getvalue()), ("long", varied.picture(8000, 2)), ("good", varied.picture(30, 9))):
            writer.write(key, {"png": data, "json": varied.talk("<image>What colour?", "red")})
    varied.write_recipe(tmp_path, "eve_v2")
    spec, packs = varied.opened(tmp_path, "eve_v2", "packed")
    manifest = build_manifest(spec, packs)
    rejected = pq.read_table(packs / "rejected.parquet").to_pylist()
    assert {told["key"]: told["reason"] for told in rejected} == {"thin": "image_too_thin", "long": "too_long"}
    assert {e.index for k in range(len(manifest)) for e in manifest[k].entries if e.images} == {2}


@pytest.mark.parametrize("name", MODELS)
def test_the_packs_of_evaluation_hold_what_training_s_do(folder: Path, name: str) -> None:
    spec, *_ = opened(folder, name)
    reader, tokenizer = ShardReader(folder / "vqa"), spec.tokenizer()
    items, problems = read_items(reader, spec.model.tiling)
    packer = Packer(reader, template(spec.model, tokenizer, spec.data.template), spec.model, tokenizer, 160)
    groups, long = packer.plan(items)
    assert not long and not problems and sorted(item.index for group in groups for item in group) == list(range(11))
    for group in groups:
        pack = packer.pack(group)
        batch: PackedBatch = pack.batch
        entries = [Entry("vqa", item.index, 0, 0, 0, 1.0, tuple(i.tiles for i in item.images), -1) for item in group]
        wanted = [tile for entry in entries for tile in shown(folder, spec, entry)]
        assert isinstance(batch.tiles, VariedTiles) and batch.sizes == batch.tiles.sizes
        assert batch.sizes == tuple(tile.shape[1:] for tile in wanted)
        for found, tile in zip(batch.tiles.each(), wanted, strict=True):
            assert torch.equal(found.cpu(), torch.from_numpy(tile.copy()))
        assert len(batch.visual_index) == sum(map(tokens_of, wanted))
        assert set(pack.problems) == {f"v{varied.CUT}"} & {item.id for item in group}

"""Packs as micro-batches: what stands where, any rank and any start the same, and a broken image costs one sample."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from megavlm.megatron_mm.data.assemble import IGNORED
from megavlm.megatron_mm.data.build import StageData, build_manifest
from megavlm.megatron_mm.data.loader import open_loader
from megavlm.megatron_mm.data.shares import Grid, Seat
from megavlm.megatron_mm.data.tokenizer import load_tokenizer
from megavlm.platform.config import load_recipe
from megavlm.platform.errors import ConfigError
from megavlm.platform.shards import ShardReader

PER_TILE = 4
MINI = load_tokenizer("mini")


@pytest.fixture
def opened(make_recipe, tmp_path):
    def open_(**sets):
        spec = StageData.of(load_recipe(str(make_recipe(**sets))), "only")
        manifest = build_manifest(spec, tmp_path / "packs")
        events = []
        return manifest, open_loader(spec, manifest, lambda kind, **fields: events.append((kind, fields))), events

    return open_


def rows(manifest, loader) -> dict:
    """Row -> its pack, with the tiles put back: those of one process that does everything."""
    found = {}
    for step in range(manifest.batches):
        batch = loader.batch(step)
        tiles = batch.tiles.split([manifest[row].tiles for row in batch.rows])
        found |= {row: replace(p, tiles=t) for row, p, t in zip(batch.rows, batch.packs, tiles, strict=True)}
    return found


def same(a, b) -> bool:
    return all(torch.equal(x, y) for x, y in zip(vars(a).values(), vars(b).values(), strict=True) if x is not None)


def test_a_row_holds_what_the_manifest_says(opened):
    manifest, loader, _ = opened()
    for row, batch in rows(manifest, loader).items():
        pack = manifest[row]
        ends = np.cumsum([entry.tokens for entry in pack.entries]).tolist()
        assert batch.cu_seqlens.tolist() == [0, *ends] + ([96] if ends[-1] < 96 else [])
        assert batch.tokens.shape == batch.labels.shape == (1, 96) and batch.tokens.dtype == torch.int64
        assert len(batch.tiles) == pack.tiles and len(batch.visual_index) == pack.tiles * PER_TILE
        assert int((batch.labels != IGNORED).sum()) == pack.targets
        # The weave of text and tags, read back: each visual run follows its own tag.
        text = MINI.show(batch.tokens[0, : ends[0]].tolist())
        assert text.startswith("<|im_start|>user\n") and text.endswith("<|im_end|>\n")


def test_learnt_tokens_are_the_answers(opened):
    manifest, loader, _ = opened()
    for row, batch in rows(manifest, loader).items():
        learnt = []
        for start, end in zip(batch.cu_seqlens[:-1].tolist(), batch.cu_seqlens[1:].tolist(), strict=True):
            labels = batch.labels[0, start:end]
            learnt.append(MINI.show(labels[labels != IGNORED].tolist()))
        answers = [("red" if e.set == "vqa" else str(e.index)) + "<|im_end|>" for e in manifest[row].entries]
        assert learnt[: len(answers)] == answers and not any(learnt[len(answers) :])


def test_tiles_are_the_picture_s(opened, make_recipe, tmp_path):
    manifest, loader, _ = opened()
    row = next(k for k in range(len(manifest)) if any((e.set, e.index) == ("vqa", 0) for e in manifest[k].entries))
    before = 0
    for entry in manifest[row].entries:
        if (entry.set, entry.index) == ("vqa", 0):
            break
        before += entry.tiles

    data = ShardReader(tmp_path / "vqa").read("p0").fields["jpg"]
    (tmp_path / "p0.jpg").write_bytes(data)
    with Image.open(tmp_path / "p0.jpg") as image:
        expected = np.asarray(image.convert("RGB").resize((28, 28), Image.Resampling.BICUBIC))
    found = rows(manifest, loader)[row].tiles[before].permute(1, 2, 0).numpy()
    assert np.abs(found.astype(int) - expected.astype(int)).max() <= 1  # libjpeg-turbo against Pillow's own libjpeg


@pytest.mark.parametrize(("dp", "pp", "cp", "tp"), [(2, 1, 1, 1), (3, 1, 1, 1), (2, 2, 2, 2), (5, 1, 1, 1)])
def test_every_layout_sees_the_same_packs_and_tiles(opened, dp, pp, cp, tp):
    manifest, loader, _ = opened()
    grid, step = Grid(dp, pp, cp), 3
    whole, parts, seen = rows(manifest, loader), [], {}
    for member in range(grid.size):
        for rank in range(tp):
            batch = loader.batch(step, Seat(grid, member, tp, rank))
            parts.append((batch.shares.decodes(member, tp, rank), batch.tiles))
            for row, pack in zip(batch.rows, batch.packs, strict=True):
                assert row is None or same(pack, replace(whole[row], tiles=pack.tiles))
                seen[row] = seen.get(row, set()) | {grid.place(member)[0]}
        assert batch.packs
    assert {row: len(replicas) for row, replicas in seen.items() if row is not None} == dict.fromkeys(range(12, 16), 1)
    assert (None in seen) == (dp > 4)  # a replica that is left over gets a pack of padding
    tiles = torch.cat([part for _, part in sorted(parts, key=lambda part: part[0].start)])
    ordered = [
        row for replica in range(dp) for row in sorted(r for r in seen if r is not None and seen[r] == {replica})
    ]
    assert torch.equal(tiles, torch.cat([whole[row].tiles for row in ordered]))


def test_an_interleaved_pipeline_gets_as_many_packs_as_it_goes_through_at_a_time(opened):
    _, loader, _ = opened()
    batches = [loader.batch(0, Seat(Grid(dp=3, pp=2), member), micro_batches_of=2) for member in range(3)]
    assert [len(batch.packs) for batch in batches] == [2, 2, 2]
    assert [batch.rows.count(None) for batch in batches] == [0, 1, 1]
    filler = batches[1].packs[-1]
    assert not filler.loss_weights.any() and filler.length == 96 and len(filler.visual_index) == 0


def learnt(batches) -> Counter:
    """What a global batch learns from, over all its replicas: of every sample its tokens, labels and weights."""
    found = Counter()
    for pack in (pack for batch in batches for pack in batch.packs):
        ends = pack.cu_seqlens.tolist()
        for start, end in itertools.pairwise(ends):
            fields = (pack.tokens, pack.labels, pack.loss_weights)
            sample = tuple(tuple(each[0, start:end].tolist()) for each in fields)
            found[sample] += any(sample[2])  # the padding has no weight
    return +found


@pytest.mark.parametrize("size", [8, 7])
def test_a_batch_of_samples_is_the_same_on_three_replicas_as_on_one(make_recipe, tmp_path, size):
    recipe = make_recipe()
    unit = f"batch: {{unit: samples, size: {size}}}"
    recipe.write_text(recipe.read_text().replace("packs_per_batch: 4", unit))
    spec = StageData.of(load_recipe(str(recipe)), "only")
    manifest = build_manifest(spec, tmp_path / "packs")
    loader, met = open_loader(spec, manifest), set()
    for step in range(manifest.batches):
        one = [loader.batch(step)]
        three = [loader.batch(step, Seat(Grid(dp=3), member)) for member in range(3)]
        assert learnt(one) == learnt(three) and sum(learnt(one).values()) == size
        weights = [sum(float(p.loss_weights.sum()) for b in batches for p in b.packs) for batches in (one, three)]
        assert weights[0] == weights[1] == sum(pack.targets for pack in manifest.batch(step))
        assert sum(len(batch.tiles) for batch in three) == len(one[0].tiles) == one[0].shares.total
        met |= {tuple(sum(row is not None for row in batch.rows) for batch in three)}
    assert any(len(set(counts)) > 1 for counts in met)  # replicas with unequal numbers of packs were among them


def test_any_start_is_the_same(opened):
    _, loader, _ = opened()
    streamed = list(loader.batches(2, 6, Seat()))
    assert len(streamed) == 4
    again = loader.batch(3)
    assert all(same(a, b) for a, b in zip(streamed[1].packs, again.packs, strict=True))
    assert torch.equal(streamed[1].tiles, again.tiles)


def test_a_stage_s_loader_refuses_another_manifest(make_recipe, tmp_path):
    recipe = make_recipe()
    manifest = build_manifest(StageData.of(load_recipe(str(recipe)), "only"), tmp_path / "packs")
    other = StageData.of(load_recipe(str(recipe), ["data.template.system=x"]), "only")
    with pytest.raises(ConfigError, match="system"):
        open_loader(other, manifest)

"""Packs as micro-batches: what stands where, any rank and any start the same, and a broken image costs one sample."""

from __future__ import annotations

from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image

from megavlm.megatron_mm.data.assemble import GREY, IGNORED
from megavlm.megatron_mm.data.build import StageData, build_manifest
from megavlm.megatron_mm.data.loader import open_loader
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
        manifest = build_manifest(spec, tmp_path / "packs.parquet")
        events = []
        return manifest, open_loader(spec, manifest, lambda kind, **fields: events.append((kind, fields))), events

    return open_


def same(a, b) -> bool:
    return all(torch.equal(getattr(a, name), getattr(b, name)) for name in vars(a))


def test_a_row_holds_what_the_manifest_says(opened):
    manifest, loader, _ = opened()
    for row in range(len(manifest)):
        pack, batch = manifest[row], loader.row(row)
        ends = np.cumsum([entry.tokens for entry in pack.samples]).tolist()
        assert batch.cu_seqlens.tolist() == [0, *ends] + ([96] if ends[-1] < 96 else [])
        assert batch.tokens.shape == batch.labels.shape == (1, 96) and batch.tokens.dtype == torch.int64
        assert len(batch.tiles) == pack.tiles and len(batch.visual_index) == pack.tiles * PER_TILE
        assert int((batch.labels != IGNORED).sum()) == pack.targets
        # The weave of text and tags, read back: each visual run follows its own tag.
        text = MINI.show(batch.tokens[0, : ends[0]].tolist())
        assert text.startswith("<|im_start|>user\n") and text.endswith("<|im_end|>\n")


def test_learnt_tokens_are_the_answers(opened):
    manifest, loader, _ = opened()
    for row in range(8):
        batch, learnt = loader.row(row), []
        for start, end in zip(batch.cu_seqlens[:-1].tolist(), batch.cu_seqlens[1:].tolist(), strict=True):
            labels = batch.labels[0, start:end]
            learnt.append(MINI.show(labels[labels != IGNORED].tolist()))
        answers = [("red" if e.set == "vqa" else e.key[1:]) + "<|im_end|>" for e in manifest[row].samples]
        assert learnt[: len(answers)] == answers and not any(learnt[len(answers) :])


def test_tiles_are_the_picture_s(opened, make_recipe, tmp_path):
    manifest, loader, _ = opened()
    row = next(k for k in range(len(manifest)) if any(e.key == "p0" for e in manifest[k].samples))
    before = 0
    for entry in manifest[row].samples:
        if entry.key == "p0":
            break
        before += entry.tiles

    data = ShardReader(tmp_path / "vqa").read("p0").fields["jpg"]
    (tmp_path / "p0.jpg").write_bytes(data)
    with Image.open(tmp_path / "p0.jpg") as image:
        expected = np.asarray(image.convert("RGB").resize((28, 28), Image.Resampling.BICUBIC))
    found = loader.row(row).tiles[before].permute(1, 2, 0).numpy()
    assert np.abs(found.astype(int) - expected.astype(int)).max() <= 1  # libjpeg-turbo against Pillow's own libjpeg


def test_ranks_share_a_global_batch_and_any_start_is_the_same(opened):
    manifest, loader, _ = opened()
    whole = loader.batch(3)
    parts = [batch for rank in (0, 1) for batch in loader.batch(3, rank, ranks=2)]
    assert len(whole) == 4 and all(same(a, b) for a, b in zip(whole, parts, strict=True))
    assert same(whole[2], loader.row(3 * 4 + 2))
    streamed = list(loader.batches(2, 6))
    assert len(streamed) == 4
    assert all(same(a, b) for a, b in zip(streamed[1], whole, strict=True))


def test_a_truncated_image_costs_one_sample(opened):

    pixels = np.random.default_rng(1).integers(0, 256, (40, 90, 3), np.uint8)
    out = BytesIO()
    Image.fromarray(pixels).save(out, "jpeg")
    turn = {"messages": [{"role": "user", "content": "<image>What?"}, {"role": "assistant", "content": "red"}]}
    cut = {"jpg": out.getvalue()[: len(out.getvalue()) // 2], "json": turn}
    whole = {"jpg": out.getvalue(), "json": turn}
    manifest, loader, events = opened(vqa={"cut": cut, "whole": whole})
    batches = [loader.row(row) for row in range(len(manifest))]
    # Reported once, although drawn many times.
    assert [(kind, fields["key"], fields["reason"]) for kind, fields in events] == [("bad_sample", "cut", "truncated")]
    for row, batch in enumerate(batches):
        start = tile = 0
        for entry in manifest[row].samples:
            labels = batch.labels[0, start : start + entry.tokens]
            tiles = batch.tiles[tile : tile + entry.tiles]
            if entry.key == "cut":
                assert (labels == IGNORED).all() and (tiles == GREY).all() and len(tiles) == 3
                assert not batch.loss_weights[0, start : start + entry.tokens].any()
            else:
                assert (labels != IGNORED).any()
            start, tile = start + entry.tokens, tile + entry.tiles


def test_a_stage_s_loader_refuses_another_manifest(make_recipe, tmp_path):
    recipe = make_recipe()
    manifest = build_manifest(StageData.of(load_recipe(str(recipe)), "only"), tmp_path / "packs.parquet")
    other = StageData.of(load_recipe(str(recipe), ["data.system=x"]), "only")
    with pytest.raises(ConfigError, match="system"):
        open_loader(other, manifest)

"""Manifests from real shards: what they hold, what is left out and why, and what a fingerprint refuses."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from megavlm.megatron_mm.config import Mixture
from megavlm.megatron_mm.data.build import StageData, build_manifest
from megavlm.megatron_mm.data.format import building
from megavlm.megatron_mm.data.manifest import Manifest, substitute
from megavlm.megatron_mm.data.stats import stats
from megavlm.megatron_mm.data.verb import inspect_main, pack_main, stats_main, trace_main
from megavlm.megatron_mm.training.plan import make_plan
from megavlm.megatron_mm.training.verb import readable
from megavlm.platform.config import load_recipe
from megavlm.platform.errors import ConfigError, InputError
from megavlm.platform.runs import RunFolder
from megavlm.platform.shards import ShardReader


def blank_picture(width: int, height: int) -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.zeros((height, width, 3), np.uint8)).save(out, "png")
    return out.getvalue()


def talk(question: str, answer: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def spec_of(recipe: Path, *overrides: str) -> StageData:
    return StageData.of(load_recipe(str(recipe), overrides), "only")


def keys(manifest: Manifest, sets: dict[str, ShardReader]) -> list[list[str]]:
    """Keys of every row's samples."""
    rows = (manifest[row].entries for row in range(len(manifest)))
    return [[sets[entry.set].key(entry.index) for entry in entries] for entries in rows]


def test_every_pack_is_full_of_whole_samples(make_recipe, tmp_path):
    spec = spec_of(make_recipe())
    manifest = build_manifest(spec, tmp_path / "packs")
    assert len(manifest) == 24 and manifest.batches == 6
    for row in range(24):
        pack = manifest[row]
        assert pack.row == row and pack.batch == row // 4
        assert 0 < pack.tokens <= 96
    assert [manifest.batch(step) for step in range(6)] == [
        [manifest[row] for row in range(4 * step, 4 * step + 4)] for step in range(6)
    ]
    drawn = {key for row in keys(manifest, spec.open_sets()) for key in row}
    assert drawn == {f"t{k}" for k in range(9)} | {"p0", "p1", "p2"}


def test_tiles_come_from_the_header_alone(make_recipe, tmp_path):
    sizes = {"p0": (28, 28), "p1": (90, 40), "p2": (40, 90), "p3": (40, 90)}
    vqa = {key: {"jpg": blank_picture(*size), "json": talk("<image>What?", "red")} for key, size in sizes.items()}
    manifest = build_manifest(spec_of(make_recipe(vqa=vqa)), tmp_path / "packs")
    entries = [entry for row in range(len(manifest)) for entry in manifest[row].entries]
    found = {(entry.set, entry.index): (entry.tiles, *entry.images) for entry in entries}
    # 28x28: one tile, its own thumbnail. 90x40 is nearest to 2:1, 40x90 to 1:2, each with a thumbnail.
    cut = [(1, (1, 1, 1)), (3, (3, 2, 1)), (3, (3, 1, 2)), (3, (3, 1, 2))]
    assert [found["vqa", k] for k in range(4)] == cut and found["text", 0] == (0,)
    spare = {entry.index: substitute(entry).index for entry in entries if entry.set == "vqa" and substitute(entry)}
    assert spare == {2: 3, 3: 2}  # of as many tiles, and placed alike


def test_the_same_recipe_gives_the_same_rows(make_recipe, tmp_path):
    recipe = make_recipe()
    a, b = (build_manifest(spec_of(recipe), tmp_path / name / "packs") for name in "ab")
    assert [a[row] for row in range(len(a))] == [b[row] for row in range(len(b))]
    assert (a.path / "rows" / "000000.arrow").read_bytes() == (b.path / "rows" / "000000.arrow").read_bytes()
    other = build_manifest(spec_of(recipe, "seed=4"), tmp_path / "c" / "packs")
    assert [a[row].entries for row in range(8)] != [other[row].entries for row in range(8)]


BAD = {
    "good": {"json": {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}},
    "long": {"json": {"messages": [{"role": "user", "content": "z" * 200}, {"role": "assistant", "content": "b"}]}},
    "mute": {"json": {"messages": [{"role": "user", "content": "a"}]}},
    "shape": {"json": {"messages": [{"role": "wizard", "content": "a"}]}},
    "list": {"json": [1, 2]},
    "broken": {"json": b"{"},
    "bare": {"txt": "no conversation"},
    "lonely": {"json": {"messages": [{"role": "user", "content": "<image>a"}, {"role": "assistant", "content": "b"}]}},
    "fake": {
        "jpg": b"this is text",
        "json": {"messages": [{"role": "user", "content": "<image>a"}, {"role": "assistant", "content": "b"}]},
    },
}
REASONS = {
    "long": "too_long", "mute": "no_answer", "shape": "unknown_role", "list": "no_messages", "broken": "invalid_json",
    "bare": "no_json", "lonely": "image_count", "fake": "image_not_an_image",
}  # fmt: skip


def test_bad_samples_are_left_out_and_named(make_recipe, tmp_path):
    spec = spec_of(make_recipe(text=BAD))
    manifest = build_manifest(spec, tmp_path / "packs")
    used = {key for row in keys(manifest, spec.open_sets()) for key in row}
    assert used == {"good", "p0", "p1", "p2"}
    rejected = pq.read_table(tmp_path / "packs" / "rejected.parquet").to_pylist()
    assert {line["key"]: line["reason"] for line in rejected} == REASONS
    assert all(line["set"] == "text" and line["detail"] for line in rejected)
    assert [list(BAD)[line["index"]] for line in rejected] == [line["key"] for line in rejected]


def test_a_set_without_one_usable_sample_stops(make_recipe, tmp_path):
    bad = {key: fields for key, fields in BAD.items() if key != "good"}
    with pytest.raises(InputError, match="no sample of at most 96 tokens"):
        build_manifest(spec_of(make_recipe(text=bad)), tmp_path / "packs")
    with pytest.raises(InputError, match="no usable sample; the first, 'mute': no_answer"):
        build_manifest(spec_of(make_recipe(text={"mute": BAD["mute"]})), tmp_path / "packs")
    assert [path.name for path in tmp_path.glob("*packs*")] == []


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("stages.only.mixture.sequence_length=128", "sequence_length"),
        ("stages.only.mixture.weights.vqa=2", "mixture"),
        ("stages.only.mixture.packs_per_batch=2", "batch"),
        ("stages.only.mixture.order=group_by_modality_length", "order"),
        ("stages.only.mixture.shuffle_window=1", "shuffle_window"),
        ("model.tiling.max_tiles=2", "tiling"),
        ("model.injection.tags=none", "injection"),
        ("data.template.system=Answer.", "template"),
        ("seed=4", "seed"),
    ],
)
def test_another_configuration_is_refused_by_name(make_recipe, tmp_path, override, named):
    recipe = make_recipe()
    manifest = build_manifest(spec_of(recipe), tmp_path / "packs")
    other = spec_of(recipe, override)
    with pytest.raises(ConfigError, match=f"{named}: packed with"):
        manifest.check(other.fingerprint(other.open_sets()), 1)


def test_more_steps_fit_but_need_more_rows(make_recipe, tmp_path):
    recipe = make_recipe()
    manifest = build_manifest(spec_of(recipe), tmp_path / "packs")
    longer = spec_of(recipe, "stages.only.steps=9")
    with pytest.raises(ConfigError, match="holds 6 global batches, and 9"):
        manifest.check(longer.fingerprint(longer.open_sets()), 9)
    rows = [manifest[row] for row in range(24)]
    grown = build_manifest(longer, tmp_path / "packs")  # in its place
    assert len(grown) == 36 and [grown[row] for row in range(24)] == rows


def test_a_changed_set_is_refused(make_recipe, tmp_path):
    spec = spec_of(make_recipe())
    manifest = build_manifest(spec, tmp_path / "packs")
    for file in (tmp_path / "text").iterdir():
        file.unlink()
    make_recipe(text={"new": BAD["good"]})
    with pytest.raises(ConfigError, match="sets: packed with"):
        manifest.check(spec.fingerprint(spec.open_sets()), 1)


def test_what_is_no_manifest_says_so(make_recipe, tmp_path):
    with pytest.raises(InputError, match="no pack manifest at"):
        Manifest(tmp_path / "packs")
    (tmp_path / "packs.parquet").write_bytes(b"PAR1 nonsense")
    for path in ("packs", "packs.parquet"):
        with pytest.raises(InputError, match=r"packs.parquet is a pack manifest of format 1, and format 3 is a folder"):
            Manifest(tmp_path / path)
    (tmp_path / "packs.parquet").unlink()
    manifest = build_manifest(spec_of(make_recipe()), tmp_path / "packs")
    (manifest.path / "rows" / "000000.arrow").write_bytes(b"nonsense")
    with pytest.raises(InputError, match="damaged"):
        Manifest(tmp_path / "packs")[0]
    (manifest.path / "manifest.json").write_text('{"format": 2}')
    with pytest.raises(InputError, match="of format 2, not 3"):
        Manifest(tmp_path / "packs")


@pytest.mark.parametrize("unit", ["samples", "tokens"])
def test_a_batch_of_samples_or_tokens(make_recipe, tmp_path, unit):
    recipe = make_recipe()
    text = recipe.read_text().replace("packs_per_batch: 4", f"batch: {{unit: {unit}, size: 50}}")
    recipe.write_text(text)
    manifest = build_manifest(spec_of(recipe), tmp_path / "packs")
    for step in range(6):
        entries = [entry for pack in manifest.batch(step) for entry in pack.entries]
        tokens = [entry.tokens for entry in entries]
        assert len(entries) == 50 if unit == "samples" else sum(tokens) >= 50
        assert unit == "samples" or sum(tokens) - max(tokens) < 50


def test_exact_passes_and_a_cap(make_recipe, tmp_path):
    """8 passes over 9 texts, 10 pictures at most: 82 samples, of which a batch of 8 leaves 2."""
    recipe = make_recipe()
    sets = "sets: {text: {epochs: 8}, vqa: {cap: 10}}"
    text = recipe.read_text().replace("weights: {text: 1, vqa: 1}", sets)
    recipe.write_text(text.replace("packs_per_batch: 4", "batch: {unit: samples, size: 8}"))
    with pytest.raises(ConfigError, match=r"(?s)make 10 global batches, and the stage has 11 .*steps=10"):
        build_manifest(spec_of(recipe, "stages.only.steps=11"), tmp_path / "packs")
    assert not (tmp_path / "packs").exists()
    manifest = build_manifest(spec_of(recipe, "stages.only.steps=10"), tmp_path / "packs")
    told = stats(manifest)
    assert told["samples"] == 80 and 70 <= told["samples_by_set"]["text"] <= 72 and told["epochs_by_set"]["text"] == 8


def test_a_kill_while_packing_leaves_nothing_half(make_recipe, tmp_path):
    spec, calls = spec_of(make_recipe()), []
    build_manifest(spec, tmp_path / "whole")

    def stop() -> None:
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_manifest(spec, tmp_path / "packs", alive=stop)
    assert not list(tmp_path.glob("*packs*"))
    # kill -9 leaves the folder that it was made in: no manifest yet, and no obstacle
    building(tmp_path / "packs").mkdir()
    (building(tmp_path / "packs") / "rows").write_text("torn")
    with pytest.raises(InputError, match="no pack manifest"):
        Manifest(tmp_path / "packs")
    again, whole = build_manifest(spec, tmp_path / "packs"), Manifest(tmp_path / "whole")
    assert [again[row] for row in range(24)] == [whole[row] for row in range(24)]
    assert not building(tmp_path / "packs").exists()


def test_the_verbs_tell_the_same_as_the_folder(make_recipe, tmp_path, capsys):
    recipe, out = make_recipe(), tmp_path / "out"
    assert pack_main([str(recipe), "--out", str(out), "--dry-run", "--json"]) == 0
    planned = json.loads(capsys.readouterr().out)["only"]
    assert planned["samples"] == {"text": 9, "vqa": 3} and planned["batch"] == "4 packs" and not out.exists()
    assert pack_main([str(recipe), "--out", str(out), "--json"]) == 0
    packed = json.loads(capsys.readouterr().out)["only"]
    path = packed.pop("path")
    assert stats_main([path, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == packed
    assert stats_main([path]) == 0 and "█" in capsys.readouterr().out
    manifest = Manifest(path)
    packs = [manifest[row] for row in range(24)]
    assert packed["tokens"] == sum(pack.tokens for pack in packs)
    assert packed["tokens_learnt"] == sum(pack.targets for pack in packs)
    assert packed["tiles"] == sum(pack.tiles for pack in packs)
    assert packed["packs_without_image"] == sum(not pack.tiles for pack in packs)
    assert packed["samples"] == sum(packed["samples_by_set"].values()) == sum(packed["lengths"].values())
    sets = spec_of(recipe).open_sets()
    for words, rows in ((["--row", "5"], [5]), (["--batch", "2"], [8, 9, 10, 11])):
        assert inspect_main([path, *words, "--json"]) == 0
        told = json.loads(capsys.readouterr().out)
        for record, row in zip(told.get("packs", [told]), rows, strict=True):
            found = [entry.pop("key") for entry in record["entries"]]
            assert record == json.loads(json.dumps(manifest[row].record()))
            assert found == [sets[entry.set].key(entry.index) for entry in manifest[row].entries]
        assert inspect_main([path, *words]) == 0
        assert all(key in capsys.readouterr().out for key in found[:1])
    with pytest.raises(InputError, match="row 24"):
        inspect_main([path, "--row", "24"])
    with pytest.raises(InputError, match="global batch 6"):
        inspect_main([path, "--batch", "6"])


@pytest.mark.parametrize("wanted", ["vqa/p1", "p1", "vqa#1"])
def test_a_sample_is_traced_to_its_steps(make_recipe, tmp_path, capsys, wanted):
    manifest = build_manifest(spec_of(make_recipe()), tmp_path / "packs")
    assert trace_main([wanted, "--packs", str(manifest.path), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    expected = [
        {"row": row, "place": place, "epoch": entry.epoch + 1, "batch": row // 4, "step": row // 4 + 1}
        for row in range(24)
        for place, entry in enumerate(manifest[row].entries)
        if (entry.set, entry.index) == ("vqa", 1)
    ]
    assert (told["set"], told["key"], told["index"]) == ("vqa", "p1", 1)
    assert told["places"] == expected and told["times"] == len(expected) > 1
    assert trace_main([wanted, "--packs", str(manifest.path)]) == 0
    assert f"step {expected[-1]['step']}" in capsys.readouterr().out
    for nowhere in ("nowhere", "vqa#3"):
        with pytest.raises(InputError, match=f"no sample '{nowhere}'"):
            trace_main([nowhere, "--packs", str(manifest.path)])


def test_a_step_is_traced_to_its_samples(make_recipe, tmp_path, capsys):
    recipe = load_recipe(str(make_recipe()))
    run = RunFolder.create(tmp_path / "run", recipe.tree, recipe.origins, ["megavlm"])
    spec = StageData.of(recipe, "only")
    manifest = build_manifest(spec, run.path("stages", "only", "packs"))
    assert trace_main([str(run.root), "--stage", "only", "--step", "3", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    sets, entries = spec.open_sets(), [(pack, entry) for pack in manifest.batch(2) for entry in pack.entries]
    assert [(s["row"], s["set"], s["key"], s["tokens"], s["tiles"]) for s in told["samples"]] == [
        (pack.row, e.set, sets[e.set].key(e.index), e.tokens, e.tiles) for pack, e in entries
    ]
    with pytest.raises(InputError, match="steps run from 1 to 6"):
        trace_main([str(run.root), "--stage", "only", "--step", "7"])
    with pytest.raises(ConfigError, match="what to trace is not clear"):
        trace_main([str(run.root), "--stage", "only"])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"packs_per_batch": None}, "size is said nowhere"),
        ({"batch": {"unit": "samples", "size": 4}}, "size is said twice"),
        ({"weights": {}}, "names its sets nowhere"),
        ({"sets": {"text": {}}}, "names its sets twice"),
        ({"weights": {"text": 0}}, "every set has the weight 0"),
        ({"weights": {}, "sets": {"text": {"weight": 1}, "vqa": {}}}, "only text has one"),
        ({"batch": {"unit": "bytes", "size": 1}, "packs_per_batch": None}, "batch.unit"),
    ],
)
def test_what_a_mixture_may_not_be(change, said):
    whole = {"weights": {"text": 1}, "sequence_length": 8, "packs_per_batch": 1}
    with pytest.raises(ConfigError, match=said):
        Mixture.parse(whole | change, where="mixture")


@pytest.mark.parametrize(
    ("batch", "known"),
    [
        ("packs_per_batch: 4", (4, 6 * 4 * 96, 4)),
        ("batch: {unit: samples, size: 8}", (None, None, None)),
        ("batch: {unit: samples, size: 8}, pack: false", (8, 6 * 8 * 96, 8)),
    ],
)
def test_a_plan_says_what_is_known_before_packing(make_recipe, batch, known):
    recipe = make_recipe()
    recipe.write_text(recipe.read_text().replace("packs_per_batch: 4", batch))
    plan = make_plan(load_recipe(str(recipe)), nproc=1)
    [stage] = plan.stages
    assert (stage.packs_per_batch, stage.tokens, stage.micro_batches) == known
    assert ("batches of 8 samples" in readable(plan, Path("run"))) == (known[0] is None)

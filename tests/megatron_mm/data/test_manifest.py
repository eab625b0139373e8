"""Manifests from real shards: what they hold, what is left out and why, and what a fingerprint refuses."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from megavlm.megatron_mm.data.build import StageData, build_manifest
from megavlm.megatron_mm.data.manifest import Manifest
from megavlm.megatron_mm.data.verb import inspect_main, pack_main, stats_main
from megavlm.platform.config import load_recipe
from megavlm.platform.errors import ConfigError, InputError

PER_TILE = 4


def spec_of(recipe: Path, *overrides: str) -> StageData:
    return StageData.of(load_recipe(str(recipe), overrides), "only")


def test_every_pack_is_full_of_whole_samples(make_recipe, tmp_path):
    manifest = build_manifest(spec_of(make_recipe()), tmp_path / "packs.parquet")
    assert len(manifest) == 24
    for row in range(24):
        pack = manifest[row]
        assert pack.row == row and pack.batch == row // 4
        assert 0 < pack.tokens <= 96 and manifest.column("tokens")[row] == pack.tokens
    drawn = Counter(entry.key for row in range(24) for entry in manifest[row].samples)
    assert set(drawn) == {f"t{k}" for k in range(9)} | {"p0", "p1", "p2"}


def test_tiles_come_from_the_header_alone(make_recipe, tmp_path):
    manifest = build_manifest(spec_of(make_recipe()), tmp_path / "packs.parquet")
    tiles = {entry.key: entry.tiles for row in range(len(manifest)) for entry in manifest[row].samples}
    # 28x28: one tile, its own thumbnail. 90x40 is nearest to 2:1, 40x90 to 1:2, each with a thumbnail.
    assert (tiles["p0"], tiles["p1"], tiles["p2"], tiles["t0"]) == (1, 3, 3, 0)


def test_the_same_recipe_gives_the_same_rows(make_recipe, tmp_path):
    recipe = make_recipe()
    a, b = (build_manifest(spec_of(recipe), tmp_path / name / "packs.parquet") for name in "ab")
    assert [a[row] for row in range(len(a))] == [b[row] for row in range(len(b))]
    other = build_manifest(spec_of(recipe, "seed=4"), tmp_path / "c" / "packs.parquet")
    assert [a[row].samples for row in range(8)] != [other[row].samples for row in range(8)]


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
    "long": "too_long", "mute": "no_answer", "shape": "no_messages", "list": "no_messages", "broken": "invalid_json",
    "bare": "no_json", "lonely": "image_count", "fake": "image_not_an_image",
}  # fmt: skip


def test_bad_samples_are_left_out_and_named(make_recipe, tmp_path):
    path = tmp_path / "packs.parquet"
    manifest = build_manifest(spec_of(make_recipe(text=BAD)), path)
    used = {entry.key for row in range(len(manifest)) for entry in manifest[row].samples if entry.set == "text"}
    assert used == {"good"}
    rejected = [json.loads(line) for line in (tmp_path / "packs.rejected.jsonl").read_text().splitlines()]
    assert {line["key"]: line["reason"] for line in rejected} == REASONS
    assert all(line["set"] == "text" and line["detail"] for line in rejected)


def test_a_set_without_one_usable_sample_stops(make_recipe, tmp_path):
    bad = {key: fields for key, fields in BAD.items() if key != "good"}
    with pytest.raises(InputError, match="no usable sample"):
        build_manifest(spec_of(make_recipe(text=bad)), tmp_path / "packs.parquet")
    assert not (tmp_path / "packs.parquet").exists()


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("stages.only.mixture.sequence_length=128", "sequence_length"),
        ("stages.only.mixture.weights.vqa=2", "mixture"),
        ("model.tiling.max_tiles=2", "tiling"),
        ("model.injection.tags=none", "injection"),
        ("data.system=Answer.", "system"),
        ("seed=4", "seed"),
    ],
)
def test_another_configuration_is_refused_by_name(make_recipe, tmp_path, override, named):
    recipe = make_recipe()
    manifest = build_manifest(spec_of(recipe), tmp_path / "packs.parquet")
    other = spec_of(recipe, override)
    with pytest.raises(ConfigError, match=f"{named}: packed with"):
        manifest.check(other.fingerprint(other.open_sets()), 1)


def test_more_steps_fit_but_need_more_rows(make_recipe, tmp_path):
    recipe = make_recipe()
    manifest = build_manifest(spec_of(recipe), tmp_path / "packs.parquet")
    longer = spec_of(recipe, "stages.only.steps=9")
    with pytest.raises(ConfigError, match="holds 24 packs, and 36"):
        manifest.check(longer.fingerprint(longer.open_sets()), longer.packs_needed())
    grown = build_manifest(longer, tmp_path / "longer.parquet")
    assert [grown[row] for row in range(24)] == [manifest[row] for row in range(24)]


def test_a_changed_set_is_refused(make_recipe, tmp_path):
    spec = spec_of(make_recipe())
    manifest = build_manifest(spec, tmp_path / "packs.parquet")
    for file in (tmp_path / "text").iterdir():
        file.unlink()
    make_recipe(text={"new": BAD["good"]})
    with pytest.raises(ConfigError, match="sets: packed with"):
        manifest.check(spec.fingerprint(spec.open_sets()), 1)


def test_what_is_no_manifest_says_so(tmp_path):
    with pytest.raises(InputError, match="no pack manifest at"):
        Manifest(tmp_path / "packs.parquet")
    (tmp_path / "packs.parquet").write_bytes(b"PAR1 nonsense")
    with pytest.raises(InputError, match="not a pack manifest"):
        Manifest(tmp_path / "packs.parquet")


def test_the_verbs_tell_the_same_as_the_file(make_recipe, tmp_path, capsys):
    recipe, out = make_recipe(), tmp_path / "out"
    assert pack_main([str(recipe), "--out", str(out), "--json"]) == 0
    packed = json.loads(capsys.readouterr().out)["only"]
    path = packed.pop("path")
    assert stats_main([path, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == packed
    manifest = Manifest(path)
    assert packed["tokens"] == sum(manifest[row].tokens for row in range(24)) == sum(manifest.column("tokens"))
    assert packed["samples"] == sum(packed["samples_by_set"].values())
    assert inspect_main([path, "--row", "5", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"row": 5} | manifest[5].record()
    assert inspect_main([path, "--row", "5"]) == 0
    shown = capsys.readouterr().out
    assert all(entry.key in shown for entry in manifest[5].samples)
    with pytest.raises(InputError, match="row 24"):
        inspect_main([path, "--row", "24"])

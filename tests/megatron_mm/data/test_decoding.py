"""Which decoder training reads images with, and the same images whoever decodes them."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from megavlm.megatron_mm.data.build import StageData, build_manifest
from megavlm.megatron_mm.data.loader import open_loader
from megavlm.megatron_mm.training.plan import make_plan
from megavlm.platform.config import load_recipe
from megavlm.platform.errors import ConfigError, MissingPackage
from megavlm.platform.images import decode_tiles


def stage(recipe: Path, *overrides: str) -> StageData:
    return StageData.of(load_recipe(str(recipe), overrides), "only")


def test_a_recipe_names_the_decoder_and_its_packs_stay(make_recipe: Callable[..., Path], tmp_path: Path) -> None:
    recipe = make_recipe()
    manifest = build_manifest(stage(recipe), tmp_path / "packs")
    shown = {}
    for name in ("exact", "fast"):
        spec = stage(recipe, f"data.decoder={name}")
        assert spec.fingerprint() == stage(recipe).fingerprint()
        reader, tiling = spec.open_sets()["vqa"], spec.model.tiling
        batch, start, shown[name] = open_loader(spec, manifest).batch(2), 0, []
        for entry in (entry for row in batch.rows for entry in manifest[row].entries if entry.images):
            data = reader.read(entry.index).fields["jpg"]
            wanted = torch.from_numpy(decode_tiles(data, tiling, decoder=name)).permute(0, 3, 1, 2)
            assert torch.equal(batch.tiles[start : start + entry.tiles], wanted)
            start += entry.tiles
            shown[name].append(wanted)
        assert start == len(batch.tiles) > 0
    assert any(not torch.equal(a, b) for a, b in zip(*shown.values(), strict=True))


def test_an_unknown_decoder_gets_the_nearest(make_recipe: Callable[..., Path]) -> None:
    with pytest.raises(ConfigError, match="unknown image decoder 'fst'") as raised:
        stage(make_recipe(), "data.decoder=fst")
    assert "fast" in str(raised.value)


@pytest.mark.skipif(find_spec("nvidia") is not None and find_spec("nvidia.nvimgcodec") is not None, reason="it is here")
def test_a_decoder_that_is_not_installed_is_refused_before_anything_starts(make_recipe: Callable[..., Path]) -> None:
    recipe = load_recipe(str(make_recipe()), ["data.decoder={name: nvidia, device: cpu}"])
    with pytest.raises(MissingPackage, match="nvidia-nvimgcodec"):
        make_plan(recipe, nproc=1)
    assert make_plan(recipe, nproc=1, elsewhere=True).stages  # another machine may have it

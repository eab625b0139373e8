"""Each silent failure of megatron-core is an error here."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Callable

import pytest
from megatron.core.models.vision.vit_layer_specs import get_vit_layer_with_local_spec
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.transformer_config import TransformerConfig

from megavlm.megatron_mm.backend import guards
from megavlm.megatron_mm.backend.specs import layer_spec
from megavlm.megatron_mm.config import ModelConfig, Parallel, Stage
from megavlm.megatron_mm.encoders.internvit import InternViT
from megavlm.megatron_mm.encoders.siglip import Siglip
from megavlm.platform.errors import ConfigError, MissingPackage


def stage(**changes: object) -> Stage:
    basis = {
        "train": ["decoder"],
        "mixture": {"weights": {"text": 1}, "sequence_length": 8, "packs_per_batch": 1},
        "steps": 1,
        "optimizer": {"lr": 1e-3},
        "precision": "fp32",
    }
    return Stage.parse(basis | changes)


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """`without(package)`: the package can no longer be found."""
    find = importlib.util.find_spec

    def hide(package: str) -> None:
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == package else find(name))

    return hide


def test_a_good_stage_passes(tiny_model: Callable[..., ModelConfig]) -> None:
    guards.check_stage(tiny_model(), stage(parallel={"tp": 2, "pp": 2}))


def test_fp8_without_transformer_engine(tiny_model: Callable[..., ModelConfig], without: Callable[[str], None]) -> None:
    without("transformer_engine")
    with pytest.raises(ConfigError, match="fp8 needs Transformer Engine") as error:
        guards.check_stage(tiny_model(), stage(precision="fp8"), where="stages.sft")
    assert error.value.where == "stages.sft.precision"


WIDE = {"encoder": {"hidden": 128, "ffn": 256}, "decoder": {"hidden": 128, "ffn": 256}}


def fp8(precision: str, length: int, **layout: object) -> Stage:
    mixture = {"weights": {"text": 1}, "sequence_length": length, "packs_per_batch": 1}
    return stage(precision=precision, mixture=mixture, parallel=layout)


@pytest.mark.parametrize(
    ("precision", "length", "layout", "said"),
    [
        ("fp8", 40, {}, r"sequence_length 40 is no multiple of 16"),
        ("fp8_tensorwise", 48, {"cp": 2}, r"sequence_length 48 / cp 2 = 24 is no multiple of 16"),
        ("fp8", 96, {"cp": 2, "tp": 4, "sequence_parallel": True}, r"96 / cp 2 / tp 4 = 12 is no multiple of 16"),
        ("fp8", 48, {"tp": 4}, None),  # without sequence parallelism every rank holds all rows
        ("fp8_blockwise", 128, {}, None),
        ("fp8_blockwise", 128, {"tp": 2}, r"model.encoder.hidden 128 / tp 2 = 64 is no multiple of 128"),
        ("fp8_blockwise", 192, {}, r"sequence_length 192 is no multiple of 128"),
    ],
)
def test_fp8_sizes_after_the_split(
    tiny_model: Callable[..., ModelConfig], precision: str, length: int, layout: dict[str, object], said: str | None
) -> None:
    planned = fp8(precision, length, **layout)
    if said is None:
        guards.check_stage(tiny_model(**WIDE), planned, elsewhere=True)
        return
    with pytest.raises(ConfigError, match=said):
        guards.check_stage(tiny_model(**WIDE), planned, elsewhere=True)


def test_fp8_takes_the_encoders_heads_as_they_are_built() -> None:
    """InternViT-6B over 8 ranks: 4096 channels of 25 + 7 heads are 512 on each, of which blocks of 128 fit."""
    widths = InternViT(dummy_heads=7).fp8_widths(Parallel(tp=8))
    assert [size // split for _, size, split in widths] == [3200, 512, 1600]
    siglip = Siglip(image_size=384, patch_size=14, layers=27, hidden=1152, heads=16, ffn=4304)
    assert siglip.fp8_widths(Parallel(tp=8)) == []  # transformers' layers, in bfloat16


def test_fp8_counts_queries_keys_and_values_together(tiny_model: Callable[..., ModelConfig]) -> None:
    """One product makes them: 128 wide in all, and 2 x 2 heads of 32 more, is no multiple of 128 in the second case."""
    wide = {**WIDE, "decoder": {**WIDE["decoder"], "heads": 4, "kv_heads": 1}}
    guards.check_stage(tiny_model(**WIDE), fp8("fp8_blockwise", 128), elsewhere=True)
    with pytest.raises(ConfigError, match=r"head width 192 is no multiple of 128"):
        guards.check_stage(tiny_model(**wide), fp8("fp8_blockwise", 128), elsewhere=True)


def test_missing_psutil(tiny_model: Callable[..., ModelConfig], without: Callable[[str], None]) -> None:
    without("psutil")
    with pytest.raises(MissingPackage, match="psutil"):
        guards.check_stage(tiny_model(), stage())


@pytest.mark.parametrize("layout", [{"tp": 3}, {"pp": 4}, {"tp": 8}])
def test_layouts_that_do_not_divide(tiny_model: Callable[..., ModelConfig], layout: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="do(es)? not divide|are left for"):
        guards.check_stage(tiny_model(), stage(parallel=layout))


@pytest.mark.parametrize("train", [[], ["injection"]])
def test_nothing_to_train(tiny_model: Callable[..., ModelConfig], train: list[str]) -> None:
    with pytest.raises(ConfigError, match="holds no parameter"):
        guards.check_stage(tiny_model(), stage(train=train))


def test_megatron_cores_own_vit_layer_is_causal_and_refused() -> None:
    with pytest.raises(ConfigError, match="causal"):
        guards.require_bidirectional(get_vit_layer_with_local_spec())
    guards.require_bidirectional(layer_spec(AttnMaskType.no_mask))


def pipeline(**options: object) -> TransformerConfig:
    return TransformerConfig(
        num_layers=4,
        hidden_size=8,
        num_attention_heads=2,
        pipeline_model_parallel_size=2,
        pipeline_dtype="fp32",
        **options,
    )


def test_interleaved_pipeline_with_batched_sends() -> None:
    guards.require_schedule(pipeline())
    with pytest.raises(ConfigError, match="batched point-to-point"):
        guards.require_schedule(pipeline(virtual_pipeline_model_parallel_size=2))
    guards.require_schedule(
        pipeline(virtual_pipeline_model_parallel_size=2, batch_p2p_comm=False, overlap_p2p_comm=True)
    )


def test_guards_load_no_torch() -> None:
    """A dry run asks them, and must answer at once."""

    code = "import sys, megavlm.megatron_mm.backend.guards; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0

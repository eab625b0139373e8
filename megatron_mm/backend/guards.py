"""What megatron-core lets fail in silence, or lets hang, as errors before anything costly starts. Loads no torch."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from math import prod
from typing import TYPE_CHECKING, Any

from megavlm.platform.errors import ConfigError, MissingPackage

from ..layout import check_layout
from .fp8 import MULTIPLES, RECIPES

if TYPE_CHECKING:
    from ..config import ModelConfig, Stage


def check_stage(model: ModelConfig, stage: Stage, where: str = "stage", elsewhere: bool = False) -> None:
    """Everything that can be said of a stage before it starts. Raises ConfigError or MissingPackage.

    `elsewhere`: it will run on other machines, so that what is installed on this one does not matter.
    """
    check_axes(model, stage, where)
    check_parts(model, stage, where)
    if not elsewhere:
        require_precision(stage.precision, where)
        require_checkpointing()
    require_fp8_sizes(model, stage, where)


def check_axes(model: ModelConfig, stage: Stage, where: str = "stage") -> None:
    """Raises ConfigError where one of the model's axes cannot be split over the stage's layout."""
    try:
        check_layout(model, stage.parallel)
    except ConfigError as error:
        raise ConfigError(error.what, where=f"{where}.{error.where or 'parallel'}", fix=error.fix) from None


def check_parts(model: ModelConfig, stage: Stage, where: str = "stage") -> None:
    """Raises ConfigError where the stage names a part that the model has not, or trains nothing."""
    for key, parts in (("train", stage.train), ("fresh", stage.fresh), ("optimizer.groups", stage.optimizer.groups)):
        model.require_parts(parts, f"{where}.{key}")
    require_trainable(model, stage.train, where)


def require_trainable(model: ModelConfig, train: Sequence[str], where: str = "stage") -> None:
    """A stage that trains nothing: the schedule runs, the loss never moves."""
    if not model.trained_parameters(train):
        raise ConfigError(
            f"train: {list(train)} holds no parameter", where=f"{where}.train", fix="name an axis that has parameters"
        )


def require_precision(precision: str, where: str = "stage") -> None:
    """FP8 without Transformer Engine: megatron-core trains on in bfloat16 and doesn't say so."""
    if precision in RECIPES and not _installed("transformer_engine"):
        raise ConfigError(
            f"precision {precision} needs Transformer Engine, which is not installed; megatron-core would ignore it in "
            "silence",
            where=f"{where}.precision",
            fix="install the gpu extra, or set precision=bf16",
        )


def require_fp8_sizes(model: ModelConfig, stage: Stage, where: str = "stage") -> None:
    """Matrices that FP8 cannot multiply: widths and rows have to divide by 16, with blocks by 128 (fp8.py).

    Both are meant after the split, and would fail only once the first step runs. An encoder's rows are filled up when
    it runs.
    """
    if stage.precision not in RECIPES:
        return
    parallel, of = stage.parallel, MULTIPLES[RECIPES[stage.precision]]
    for axis in ("encoder", "decoder"):
        for key, size, split in getattr(model, axis).fp8_widths(parallel):
            _require_multiple(size, {"tp": split}, of, f"model.{axis}.{key}", where)
    groups, tp = model.decoder.kv_heads, parallel.tp
    if groups >= tp:  # fewer are copied, not split
        together = model.decoder.hidden + 2 * groups * model.decoder.head_dim
        _require_multiple(together, {"tp": tp}, of, "model.decoder.hidden + 2 x kv_heads x head width", where)
    rows = {"cp": parallel.cp, "tp": tp if parallel.sequence_parallel else 1}
    _require_multiple(stage.mixture.sequence_length, rows, of, f"{where}.mixture.sequence_length", where)


def _require_multiple(size: int, split: dict[str, int], of: int, key: str, where: str) -> None:
    ways = prod(split.values())
    if size % (ways * of):
        names = [f" / {name} {count}" for name, count in split.items() if count > 1]
        each = f"{size}{''.join(names)} = {size / ways:g}" if names else f"{size}"
        raise ConfigError(
            f"fp8: {key} {each} is no multiple of {of}",
            where=f"{where}.precision",
            fix=f"set {key} to a multiple of {ways * of}, another {' or '.join(f'parallel.{n}' for n in split)}, or "
            "precision=bf16",
        )


def require_checkpointing() -> None:
    """Without psutil megatron-core's checkpoint writers die and the save waits for them for ever."""
    if not _installed("psutil"):
        raise MissingPackage("megatron-core's checkpoint writer needs psutil", fix="pip install psutil")


def require_bidirectional(layer: Any) -> None:
    """An encoder whose self-attention is causal: what megatron-core's local ViT spec gives. `layer` is a ModuleSpec."""
    from megatron.core.transformer.enums import AttnMaskType

    mask = layer.submodules.self_attention.params.get("attn_mask_type")
    if mask is not AttnMaskType.no_mask:
        raise ConfigError(
            f"the encoder's self-attention has the mask type {getattr(mask, 'name', mask)}: patches would not see "
            "those after them",
            where="encoder",
            fix="build its layers with AttnMaskType.no_mask",
        )


def require_schedule(config: Any) -> None:
    """Interleaved pipelines with batched sends match two messages between the same ranks in the wrong order.

    `config` is a TransformerConfig. Measured on two stages with two chunks each: the loss is off from the first step.
    """
    interleaved = (config.virtual_pipeline_model_parallel_size or 1) > 1
    if interleaved and (config.batch_p2p_comm or not config.overlap_p2p_comm):
        raise ConfigError(
            f"virtual pipeline size {config.virtual_pipeline_model_parallel_size} with batched point-to-point sends "
            "computes wrong losses in silence",
            where="parallel.pp",
            fix="set batch_p2p_comm=False and overlap_p2p_comm=True in the TransformerConfig",
        )


def _installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None

"""Patch aligning against a statement that keeps all hidden states and goes image by image."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from aligning_worker import TEACHER, model_config, pack
from megatron.core import dist_checkpointing
from torch import Tensor

from megavlm.megatron_mm import backend
from megavlm.megatron_mm.checkpoints.weights import fill
from megavlm.megatron_mm.config import Parallel
from megavlm.megatron_mm.contracts import BuildContext, PackedBatch
from megavlm.megatron_mm.model import VisionLanguageModel, build_model
from megavlm.megatron_mm.objectives.loss import Outcome, Sum
from megavlm.platform.errors import ConfigError

THEIRS = {
    "layers": "num_hidden_layers",
    "hidden": "hidden_size",
    "heads": "num_attention_heads",
    "ffn": "intermediate_size",
}
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
SIZES = ((64, 24), (8, 64), (64, 64))


def built(context: BuildContext, **options: Any) -> VisionLanguageModel:
    model = build_model(model_config(**options), context)
    backend.initialise(model, seed=3)
    return model.train()


def taught(model: VisionLanguageModel, batch: PackedBatch) -> PackedBatch:
    assert model.teacher is not None
    return replace(model.see(batch), taught=model.teacher(batch.tiles).values)


def outcome(model: VisionLanguageModel, batch: PackedBatch) -> Outcome:
    found = model.stages[0](taught(model, batch))
    assert isinstance(found, Outcome)
    return found


@pytest.fixture
def all_states(one_process: BuildContext) -> Callable[..., tuple[Outcome, list[Tensor]]]:
    """Runs a pack and keeps every hidden state [s, hidden], as transformers numbers them."""

    def run(model: VisionLanguageModel, batch: PackedBatch) -> tuple[Outcome, list[Tensor]]:
        states: list[Tensor] = []
        block = model.stages[0].decoder.decoder
        hooks = [
            layer.register_forward_pre_hook(
                lambda _, __, kwargs: states.append(kwargs["hidden_states"][:, 0]), with_kwargs=True
            )
            for layer in block.layers
        ]
        hooks.append(block.final_layernorm.register_forward_hook(lambda _, __, out: states.append(out[:, 0])))
        found = outcome(model, batch)
        for hook in hooks:
            hook.remove()
        return found, states

    return run


def images(config: Any, batch: PackedBatch) -> Iterator[tuple[tuple[int, int], Tensor]]:
    """Of each image its grid of cells, and where they stand in the sequence [rows, columns]."""
    start = 2
    for height, width in batch.sizes or ():
        rows, columns = height // 8, width // 8
        yield (rows, columns), torch.arange(start + 1, start + 1 + rows * (columns + 1)).view(rows, columns + 1)[:, :-1]
        start += rows * (columns + 1) + 1


def teacher_of(weights: dict[str, Tensor], tile: Tensor, scale: int) -> Tensor:
    """[rows, columns, width] of one image: transformers' CLIP on a grey square, its middle cut out."""
    from megavlm.kernels.torchvision import load

    load()
    import transformers

    names = {
        "layers": "num_hidden_layers",
        "hidden": "hidden_size",
        "heads": "num_attention_heads",
        "ffn": "intermediate_size",
    }
    sizes = {names.get(key, key): value for key, value in TEACHER.items() if key != "name"}
    clip = transformers.CLIPVisionModel(
        transformers.CLIPVisionConfig(**sizes, hidden_act="quick_gelu", attn_implementation="eager")
    )
    missing, unexpected = clip.load_state_dict(weights, strict=False)
    assert not unexpected and all(
        "layers.2" in name or "post_layernorm" in name or "position_ids" in name for name in missing
    )
    height, width = (edge // (2 * scale) for edge in tile.shape[1:])
    small = (
        F.interpolate(tile[None].float(), size=(height, width), mode="bicubic", antialias=True)[0].round().clamp(0, 255)
    )
    mean, std = (
        torch.tensor(each)[:, None, None]
        for each in ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
    )
    square = (255 * mean).int().float().repeat(1, 32, 32)
    rows, columns = height // 4, width // 4
    top, left = (8 - rows) // 2, (8 - columns) // 2
    square[:, 4 * top : 4 * top + height, 4 * left : 4 * left + width] = small
    with torch.no_grad():
        states = clip(((square / 255 - mean) / std)[None], output_hidden_states=True).hidden_states
    return states[-2][0, 1:].view(8, 8, -1)[top : top + rows, left : left + columns]


def stated(model: VisionLanguageModel, batch: PackedBatch, states: list[Tensor], scale: int) -> Tensor:
    """The mean over images of 1 - cosine, one place after another."""
    weights = dict(model.stages[0].get_submodule("objectives.patch_aligning").named_parameters())
    clip = {
        name.removeprefix("objectives.teacher.vision_model."): value for name, value in model.teacher.named_parameters()
    }
    losses = []
    for ((rows, columns), places), tile in zip(images(model.spec, batch), batch.tiles.each(), strict=True):
        pooled = {}
        for k in (0, 2, 4):
            grid = states[k][places.flatten()].view(rows, columns, -1).permute(2, 0, 1)
            pooled[k] = F.avg_pool2d(grid[None], scale)[0].permute(1, 2, 0)
        wanted, found = teacher_of(clip, tile, scale), []
        for place in [(y, x) for y in range(rows // scale) for x in range(columns // scale)]:
            at = {k: pooled[k][place] for k in pooled}
            tapped = {
                k: F.layer_norm(at[k], (32,), weights[f"norms.{k}.weight"], weights[f"norms.{k}.bias"])
                @ weights[f"taps.{k}.weight"].T
                for k in at
            }
            heads = []
            for part in (slice(0, 8), slice(8, 16)):
                scores = torch.stack([tapped[4][part] @ tapped[k][part] for k in (2, 0)]) * 16**-0.5
                heads.append(sum(w * tapped[k][part] for w, k in zip(scores.softmax(0), (2, 0), strict=True)))
            answer = F.linear(torch.cat(heads), weights["output.weight"], weights["output.bias"])
            answer = answer + F.linear(at[4], weights["input.weight"], weights["input.bias"])
            found.append(1 - F.cosine_similarity(answer, wanted[place], dim=0))
        losses.append(torch.stack(found).mean())
    return torch.stack(losses).mean()


@pytest.mark.parametrize("scale", [1, 2])
def test_it_is_what_keeping_all_hidden_states_gives(all_states: Any, one_process: BuildContext, scale: int) -> None:
    model = built(one_process, scale=scale)
    model.freeze(["encoder", "connector", "decoder", "objectives"])
    sizes = tuple((height * scale, width * scale) for height, width in SIZES)
    batch = pack(1, sizes, model.spec, length=128 if scale == 1 else 512)
    found, states = all_states(model, batch)
    part = Sum(model.spec).parts[1]
    ours = part.total(found.mismatch, batch) / part.weight(batch)
    theirs = stated(model, batch, states, scale)
    assert float(ours) == pytest.approx(float(theirs), abs=1e-6)
    trained = [p for p in model.parameters() if p.requires_grad]
    first = torch.autograd.grad(ours, trained, retain_graph=True, allow_unused=True)
    second = torch.autograd.grad(theirs, trained, allow_unused=True)
    assert sum(g is not None for g in first) > 20
    for a, b in zip(first, second, strict=True):
        assert (a is None) == (b is None) or a is None or not a.any()
        if a is not None and b is not None:
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_layers_that_are_computed_again_change_nothing(one_process: BuildContext) -> None:
    found = {}
    for recompute in ("none", "selective", "full"):
        model = built(backend.build_context(Parallel(), recompute=recompute))
        model.freeze(["encoder", "connector", "decoder", "objectives"])
        done = outcome(model, pack(1, SIZES, model.spec))
        (done.losses.sum() + done.mismatch.sum()).backward()
        found[recompute] = [done.mismatch] + [p.grad for p in model.parameters() if p.requires_grad]
    for other in ("selective", "full"):
        for a, b in zip(found["none"], found[other], strict=True):
            assert (a is None and b is None) or torch.allclose(a, b, atol=1e-7)


def test_both_forms_are_one_number(one_process: BuildContext) -> None:
    values = [
        outcome(built(one_process, form=form), pack(1, SIZES, model_config())).mismatch for form in ("cosine", "mse")
    ]
    torch.testing.assert_close(*values, rtol=0, atol=1e-6)


def test_nothing_is_tapped_in_evaluation_and_text_is_aligned_with_nothing(
    one_process: BuildContext,
) -> None:
    model = built(one_process)
    batch = pack(1, SIZES, model.spec)
    assert torch.is_tensor(model.eval()(batch))
    none = outcome(model.train(), pack(2, (), model.spec))
    part = Sum(model.spec).parts[1]
    assert none.mismatch.shape == (0,) and float(part.total(none.mismatch, pack(2, (), model.spec))) == 0
    assert float(part.weight(pack(2, (), model.spec))) == 0 and float(part.weight(batch)) == 3


def test_the_teacher_never_learns_and_stands_in_checkpoints(one_process: BuildContext) -> None:
    model = built(one_process)
    model.freeze(["objectives"])
    names = {name for name, p in model.named_parameters() if p.requires_grad}
    assert names and all("patch_aligning" in name for name in names)
    state = model.sharded_state_dict()
    assert all(name.startswith("objectives.teacher.") for name in state["teacher"]) and state["teacher"]
    held = {name for name in state["stage-0"] if name.startswith("objectives.patch_aligning.")}
    assert {"objectives.patch_aligning.norms.2.bias", "objectives.patch_aligning.taps.4.weight"} < held
    assert sum(p.numel() for _, p in model.axis("objectives")) == model.spec.parameter_counts()["auxiliary"]
    assert sum(p.numel() for p in model.teacher.parameters()) == model.spec.parameter_counts()["teacher"]


def test_a_model_that_answers_needs_neither_taps_nor_teacher(one_process: BuildContext, tmp_path: Path) -> None:
    trained = built(one_process)
    dist_checkpointing.save(trained.sharded_state_dict(), str(tmp_path))
    model = build_model(model_config().answering(), one_process)
    fill(model, tmp_path)
    assert model.teacher is None and not list(model.axis("objectives"))
    batch = pack(1, SIZES, model.spec)
    assert torch.equal(model.eval()(batch), trained.eval()(batch))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"side": 64, "teacher": TEACHER | {"image_size": 64}}, "each has to divide"),
        ({"width": 24, "heads": 2}, "channels"),
        ({"side": 64}, "squares of 64"),
    ],
)
def test_what_does_not_fit_is_refused(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        model_config(**change)


def test_the_published_sizes() -> None:
    """EVE-7B: 32 layers of 4096, nine taps of 1024 (measured on the published code)."""
    spec = model_config().objectives[1].model_copy(update={"every": 4, "width": 1024, "heads": 8})
    decoder = model_config().decoder.model_copy(update={"layers": 32, "hidden": 4096})
    assert spec.taps(32) == [0, 4, 8, 12, 16, 20, 24, 28, 32] and spec.parameters(decoder) == 43_067_392

"""Qwen2 on megatron-core against transformers' Qwen2ForCausalLM on the same random weights."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from megavlm.kernels import torchvision
from megavlm.megatron_mm.config import Parallel
from megavlm.megatron_mm.contracts import BuildContext
from megavlm.megatron_mm.decoders.qwen2 import Qwen2
from megavlm.megatron_mm.injection.inline import Inline
from megavlm.platform.errors import ConfigError

SPEC = Qwen2(layers=2, hidden=32, heads=4, kv_heads=2, ffn=48, vocab=96)
QWEN2_72B = Qwen2(layers=80, hidden=8192, heads=64, kv_heads=8, ffn=29568, vocab=152064)


def published(spec: Qwen2) -> torch.nn.Module:
    torchvision.load()  # transformers imports it
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=spec.vocab,
        hidden_size=spec.hidden,
        intermediate_size=spec.ffn,
        num_hidden_layers=spec.layers,
        num_attention_heads=spec.heads,
        num_key_value_heads=spec.kv_heads,
        rms_norm_eps=spec.norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": spec.rope_base},
        tie_word_embeddings=spec.tied,
        initializer_range=0.2,
    )
    model = Qwen2ForCausalLM(config).eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.endswith("bias") or "norm" in name:  # transformers starts them at 0 and 1, which would hide mix-ups
                p.add_(torch.randn_like(p) * 0.3)
    return model


def grouped(spec: Qwen2, layer: dict[str, Tensor], kind: str) -> Tensor:
    """megatron-core's qkv rows: for each query group its queries, its key, its value."""
    parts = [layer[f"self_attn.{p}_proj.{kind}"].unflatten(0, (spec.kv_heads, -1)) for p in "qkv"]
    return torch.cat(parts, dim=1).flatten(0, 1)


def renamed(spec: Qwen2, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """transformers' tensors under megatron-core's names."""
    out = {
        "embedding.word_embeddings.weight": state["model.embed_tokens.weight"],
        "decoder.final_layernorm.weight": state["model.norm.weight"],
    }
    if not spec.tied:
        out["output_layer.weight"] = state["lm_head.weight"]
    for i in range(spec.layers):
        prefix = f"model.layers.{i}."
        layer = {name.removeprefix(prefix): t for name, t in state.items() if name.startswith(prefix)}
        gate_up = torch.cat([layer["mlp.gate_proj.weight"], layer["mlp.up_proj.weight"]])
        out |= {
            f"decoder.layers.{i}.{name}": tensor
            for name, tensor in {
                "input_layernorm.weight": layer["input_layernorm.weight"],
                "pre_mlp_layernorm.weight": layer["post_attention_layernorm.weight"],
                "self_attention.linear_qkv.weight": grouped(spec, layer, "weight"),
                "self_attention.linear_qkv.bias": grouped(spec, layer, "bias"),
                "self_attention.linear_proj.weight": layer["self_attn.o_proj.weight"],
                "mlp.linear_fc1.weight": gate_up,
                "mlp.linear_fc2.weight": layer["mlp.down_proj.weight"],
            }.items()
        }
    return out


@pytest.mark.parametrize("tied", [False, True])
def test_logits_equal_transformers(one_process: BuildContext, tied: bool) -> None:
    spec = SPEC.model_copy(update={"tied": tied})
    reference, ours = published(spec), spec.build(one_process, Inline())
    wanted = renamed(spec, reference.state_dict())
    own = dict(ours.named_parameters())
    assert set(own) == set(wanted)
    with torch.no_grad():
        for name, tensor in wanted.items():
            own[name].copy_(tensor)
        tokens = torch.randint(0, spec.vocab, (2, 19), generator=torch.Generator().manual_seed(1))
        positions = torch.arange(19).expand(2, -1)
        logits = ours(tokens, positions, None)
        torch.testing.assert_close(logits, reference(tokens).logits, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("spec", "stated"),
    [
        (SPEC, None),
        (SPEC.model_copy(update={"tied": True}), None),
        (Qwen2(layers=4, hidden=128, heads=4, kv_heads=2, ffn=384, vocab=512), None),
        (QWEN2_72B, 72.706e9),
    ],
    ids=["tiny", "tied", "mini", "72B"],
)
def test_parameters_are_counted_right(one_process: BuildContext, spec: Qwen2, stated: float | None) -> None:
    with torch.device("meta"):
        built = sum(p.numel() for p in spec.build(one_process, Inline()).parameters())
    assert spec.parameters() == built
    assert stated is None or built == pytest.approx(stated, rel=1e-4)


def test_vocabulary_is_padded_for_the_layout() -> None:
    assert [SPEC.model_copy(update={"vocab": 97}).padded_vocab(tp) for tp in (1, 2, 8)] == [97, 98, 104]


@pytest.mark.parametrize(
    ("layout", "said"),
    [({"tp": 3}, "decoder.heads 4 does not divide"), ({"pp": 3}, "decoder.layers 2: 2 are left for 3")],
)
def test_layouts_that_do_not_fit(layout: dict[str, int], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        SPEC.check(Parallel(**layout))


def test_groups_that_do_not_fit() -> None:
    shape = Qwen2(layers=1, hidden=48, heads=12, kv_heads=6, ffn=48, vocab=96)
    with pytest.raises(ConfigError, match="kv_heads 6 and parallel.tp 4"):
        shape.check(Parallel(tp=4))


def test_heads_must_share_evenly(tiny_model: Callable[..., object]) -> None:
    with pytest.raises(ConfigError, match="decoder.heads 4 does not divide by decoder.kv_heads 3"):
        tiny_model(decoder={"kv_heads": 3})

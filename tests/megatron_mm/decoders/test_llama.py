"""Llama's family on megatron-core against transformers' LlamaForCausalLM on the same random weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from megavlm.kernels import torchvision
from megavlm.megatron_mm.contracts import BuildContext
from megavlm.megatron_mm.decoders.llama import Llama
from megavlm.megatron_mm.injection.inline import Inline
from megavlm.platform.errors import ConfigError

SMALL = {"layers": 2, "hidden": 32, "heads": 4, "kv_heads": 2, "ffn": 48, "vocab": 96, "max_positions": 64}
SCALING = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_positions": 16}
SHAPES: dict[str, dict[str, Any]] = {
    "llama 2": {"rope_base": 1e4, "norm_eps": 1e-5, "kv_heads": 4},
    "llama 3": {"rope_base": 5e5, "norm_eps": 1e-5},
    "llama 3.1": {"rope_base": 5e5, "norm_eps": 1e-5, "rope_scaling": SCALING},
    "llama 3.2": {"rope_base": 5e5, "norm_eps": 1e-5, "tied": True, "rope_scaling": {**SCALING, "factor": 32.0}},
    "vicuna 1.3": {"rope_base": 1e4, "norm_eps": 1e-6, "kv_heads": 4},
    "yi": {"rope_base": 5e6, "norm_eps": 1e-5},
}
FULL = {  # published sizes and counts
    "Yi-34B": ({"layers": 60, "hidden": 7168, "heads": 56, "kv_heads": 8, "ffn": 20480, "vocab": 64000}, 34.389e9),
    "Llama-3-70B": (
        {"layers": 80, "hidden": 8192, "heads": 64, "kv_heads": 8, "ffn": 28672, "vocab": 128256},
        70.554e9,
    ),
    "Llama-2-7B": ({"layers": 32, "hidden": 4096, "heads": 32, "kv_heads": 32, "ffn": 11008, "vocab": 32000}, 6.738e9),
}


def small(name: str) -> Llama:
    return Llama.parse({**SMALL, **SHAPES[name]})


def published(spec: Llama) -> torch.nn.Module:
    """transformers' class in that shape, norms and biases shaken out of their 0 and 1."""
    torchvision.load()  # transformers imports it
    from transformers import LlamaConfig, LlamaForCausalLM

    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": spec.rope_base}
    if spec.rope_scaling:
        own = spec.rope_scaling.model_dump()
        rope |= own | {"rope_type": "llama3", "original_max_position_embeddings": own.pop("original_positions")}
    config = LlamaConfig(
        vocab_size=spec.vocab, hidden_size=spec.hidden, intermediate_size=spec.ffn, num_hidden_layers=spec.layers,
        num_attention_heads=spec.heads, num_key_value_heads=spec.kv_heads, rms_norm_eps=spec.norm_eps,
        max_position_embeddings=spec.max_positions, rope_parameters=rope, tie_word_embeddings=spec.tied,
        initializer_range=0.2,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "norm" in name and not p.is_meta:
                p.add_(torch.randn_like(p) * 0.3)
    return model


@torch.no_grad()
def take(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor], spec: Llama) -> None:
    """Row by row: head h of the queries, and its group's key and value."""
    size, queries = spec.head_dim, spec.heads // spec.kv_heads
    names = {"embedding.word_embeddings": "model.embed_tokens", "decoder.final_layernorm": "model.norm"}
    if not spec.tied:
        names["output_layer"] = "lm_head"
    for i in range(spec.layers):
        a, b = f"decoder.layers.{i}.", f"model.layers.{i}."
        names |= {
            a + "input_layernorm": b + "input_layernorm",
            a + "pre_mlp_layernorm": b + "post_attention_layernorm",
            a + "self_attention.linear_proj": b + "self_attn.o_proj",
            a + "mlp.linear_fc2": b + "mlp.down_proj",
        }
        qkv = ours.pop(a + "self_attention.linear_qkv.weight")
        for group in range(spec.kv_heads):
            heads = [("q", group * queries + j) for j in range(queries)] + [("k", group), ("v", group)]
            for j, (part, head) in enumerate(heads):
                start = (group * (queries + 2) + j) * size
                rows = theirs[f"{b}self_attn.{part}_proj.weight"][head * size : (head + 1) * size]
                qkv[start : start + size] = rows
        gate_up = ours.pop(a + "mlp.linear_fc1.weight")
        gate_up[: spec.ffn] = theirs[b + "mlp.gate_proj.weight"]
        gate_up[spec.ffn :] = theirs[b + "mlp.up_proj.weight"]
    for mine, its in names.items():
        ours.pop(mine + ".weight").copy_(theirs[its + ".weight"])
    assert not ours


@pytest.mark.parametrize("name", SHAPES)
def test_logits_equal_transformers(one_process: BuildContext, name: str) -> None:
    """At positions beyond where the scaling began, too."""
    spec = small(name)
    torch.manual_seed(0)
    reference, ours = published(spec), spec.build(one_process, Inline())
    take(dict(ours.named_parameters()), reference.state_dict(), spec)
    tokens = torch.randint(0, spec.vocab, (2, 50), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        logits = ours(tokens, torch.arange(50).expand(2, -1), None)
        torch.testing.assert_close(logits, reference(tokens).logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["llama 3.1", "llama 3.2"])
def test_frequencies_are_those_of_llama_3_1(one_process: BuildContext, name: str) -> None:
    """Written out from the paper's reference: kept, divided, and blended in between."""
    spec = Llama.parse({**SMALL, **SHAPES[name], "hidden": 512})
    scaling = spec.rope_scaling
    assert scaling is not None
    wanted = []
    for j in range(0, spec.head_dim, 2):
        frequency = spec.rope_base ** (-j / spec.head_dim)
        turns = scaling.original_positions * frequency / (2 * torch.pi)  # within the original length
        share = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
        share = min(max(share, 0.0), 1.0)
        wanted.append(share * frequency + (1 - share) * frequency / scaling.factor)
    with torch.device("meta"):
        found = spec.build(one_process, Inline()).rotary_pos_emb.inv_freq
    assert found.tolist() == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("name", SHAPES)
def test_parameters_are_those_of_the_class(one_process: BuildContext, name: str) -> None:
    spec = small(name)
    with torch.device("meta"):
        built = sum(p.numel() for p in spec.build(one_process, Inline()).parameters())
    assert spec.parameters() == built == sum(p.numel() for p in published(spec).parameters())


@pytest.mark.parametrize("name", FULL)
def test_published_sizes(name: str) -> None:
    shape, stated = FULL[name]
    spec = Llama.parse({**shape, "max_positions": 4096, "rope_base": 1e4, "norm_eps": 1e-5})
    with torch.device("meta"):
        assert spec.parameters() == sum(p.numel() for p in published(spec).parameters())
    assert spec.parameters() == pytest.approx(stated, rel=1e-4)


@pytest.mark.parametrize("left_out", ["rope_base", "norm_eps", "max_positions"])
def test_what_the_family_differs_in_has_to_be_said(left_out: str) -> None:
    shape = {**SMALL, **SHAPES["yi"]}
    del shape[left_out]
    with pytest.raises(ConfigError, match=left_out):
        Llama.parse(shape)


def test_a_scaling_out_of_order() -> None:
    with pytest.raises(ConfigError, match=r"low_freq_factor 4.0 is not below high_freq_factor 4.0"):
        Llama.parse({**SMALL, **SHAPES["yi"], "rope_scaling": {"factor": 8, "low_freq_factor": 4}})

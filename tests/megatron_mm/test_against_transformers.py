"""Twenty steps of a small run against a plain loop over transformers' modules: same data, order, loss and optimizer."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import pytest
import torch
import torch.nn.functional as F
from plain_loop import Pair, Published, apart, global_batches, our_losses, plain_losses, renamed
from torch import Tensor, nn

from megavlm.megatron_mm import backend
from megavlm.megatron_mm.config import ModelConfig
from megavlm.megatron_mm.contracts import BuildContext
from megavlm.megatron_mm.model import VisionLanguageModel, build_model

MEAN, STD = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
VISION = {
    "embeddings.cls_token": "embedding.class_token",
    "embeddings.position_embeddings": "embedding.positions",
    "embeddings.patch_embeddings.projection": "embedding.patches",
    "layernorm_before": "input_layernorm",
    "layernorm_after": "pre_mlp_layernorm",
    "attention.projection_layer": "self_attention.linear_proj",
    "attention.q_norm": "self_attention.q_norm",
    "attention.k_norm": "self_attention.k_norm",
    "lambda_1": "self_attn_bda.scale",
    "lambda_2": "mlp_bda.scale",
    "mlp.fc1": "mlp.linear_fc1",
    "mlp.fc2": "mlp.linear_fc2",
}
CONNECTOR = {"norm": "norm", "fc1": "mlp.linear_fc1", "fc2": "mlp.linear_fc2"}


class InternVL(Published):
    """InternVL's encoder and Qwen2 of transformers, with NVLM's connector written out."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        from transformers import InternVLVisionConfig
        from transformers.models.internvl.modeling_internvl import InternVLVisionModel

        see = config.encoder
        sides = {"image_size": [see.image_size] * 2, "patch_size": [see.patch_size] * 2}
        self.vision = InternVLVisionModel(
            InternVLVisionConfig(
                hidden_size=see.hidden, num_hidden_layers=see.layers, num_attention_heads=see.heads,
                intermediate_size=see.ffn, hidden_act="gelu", norm_type="rms_norm", layer_norm_eps=see.norm_eps,
                use_qk_norm=True, attention_bias=False, use_mean_pooling=True, use_absolute_position_embeddings=True,
                **sides,
            )
        )  # fmt: skip
        self.connector = nn.Module()
        self.connector.norm = nn.LayerNorm(4 * see.hidden, eps=config.connector.norm_eps)
        self.connector.fc1 = nn.Linear(4 * see.hidden, config.connector.hidden, bias=False)
        self.connector.fc2 = nn.Linear(config.connector.hidden, config.decoder.hidden, bias=False)

    def visual(self, tiles: Tensor) -> Tensor:
        patches = self.vision((tiles / 255 - MEAN) / STD).last_hidden_state[:, 1:]
        n, side, c = len(tiles), math.isqrt(patches.shape[1]), patches.shape[2]
        blocks = patches.view(n, side // 2, 2, side // 2, 2, c).permute(0, 1, 3, 2, 4, 5).reshape(n, -1, 4 * c)
        two = self.connector
        return two.fc2(F.gelu(two.fc1(two.norm(blocks)))).flatten(0, 1)

    def seen(self, model: VisionLanguageModel) -> Iterator[Pair]:
        ours = dict(model.tower.encoder.named_parameters())
        for name, p in self.vision.named_parameters():
            yield Pair(f"vision.{name}", p, _seen(ours, name, p))
        ours = dict(model.tower.connector.named_parameters())
        for name, p in self.connector.named_parameters():
            yield Pair(f"connector.{name}", p, ours[renamed(name, CONNECTOR)])

    def undecayed(self, name: str, p: Tensor) -> bool:
        """transformers keeps the class token with two axes of one more; ours is a vector."""
        return p.dim() <= 1 or name.endswith("cls_token")


def _seen(ours: dict[str, Tensor], name: str, p: Tensor) -> Tensor:
    head, _, tail = name.partition("encoder.layer.")
    layer, _, rest = tail.partition(".")
    prefix = f"block.layers.{layer}." if tail else ""
    rest = rest if tail else head
    if "_proj.weight" in rest:  # q, k, v: rows of ours go head by head, each with its query, key and value
        joined = ours[f"{prefix}self_attention.linear_qkv.weight"]
        which = "qkv".index(rest.split(".")[1][0])
        heads = len(joined) // 3 // (len(p) // 4)
        return joined.view(heads, 3, -1, joined.shape[1])[:, which].reshape(p.shape)
    return ours[prefix + renamed(rest, VISION)]


def test_twenty_steps_equal_a_plain_loop(one_process: BuildContext, tiny_model: Callable[..., ModelConfig]) -> None:
    config = tiny_model()
    model = build_model(config, one_process)
    backend.initialise(model, seed=6)
    reference, batches = InternVL(config), global_batches(config)
    reference.take(model)
    first = {pair.name: pair.published.detach().clone() for pair in reference.pairs(model)}
    wanted = plain_losses(reference, batches)
    assert our_losses(model, batches) == pytest.approx(wanted, abs=1e-4)
    assert max(apart(reference.pairs(model), first).values()) < 3e-3
    assert {len(pack.tiles) for packs in batches for pack in packs} == {0, 1, 3}

"""Twenty steps of Eagle's and MMFuser's minis against a plain loop over transformers' and timm's classes, all trained.

Experts, fusion and decoder are published modules or a few lines of torch; nothing of ours computes there.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from plain_loop import Pair, Published, apart, global_batches, our_losses, plain_losses
from published_experts import EXPERTS, RENAMED, clip, normalised
from torch import Tensor, nn

from megavlm.megatron_mm import backend
from megavlm.megatron_mm.config import ModelConfig
from megavlm.megatron_mm.contracts import BuildContext
from megavlm.megatron_mm.model import VisionLanguageModel, build_model
from megavlm.platform.config import load_recipe

pytestmark = pytest.mark.timeout(600)


def mlp(channels: int, width: int) -> nn.Sequential:
    """LLaVA's mlp2x_gelu."""
    return nn.Sequential(nn.Linear(channels, width), nn.GELU(), nn.Linear(width, width))


class Eagle(Published):
    """Every expert's map on the connector's grid, their channels side by side."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        see = config.encoder
        self.kinds = {key: see.experts[key].name for key in see.use}
        self.experts = nn.ModuleDict({key: EXPERTS[kind](see.experts[key]) for key, kind in self.kinds.items()})
        self.projector = mlp(sum(shape.channels for shape in see.maps), config.decoder.hidden)

    def visual(self, tiles: Tensor) -> Tensor:
        grid = (self.config.connector.grid,) * 2
        maps = [F.interpolate(each(tiles), grid, mode="bilinear", align_corners=True) for each in self.experts.values()]
        return self.projector(torch.cat(maps, 1).flatten(2).transpose(1, 2)).flatten(0, 1)

    def seen(self, model: VisionLanguageModel) -> Iterator[Pair]:
        ours = dict(model.tower.encoder.named_parameters()) | dict(model.tower.connector.named_parameters())
        for name, p in [*self.experts.named_parameters("experts"), *self.projector.named_parameters("projector")]:
            there = name.replace(".net.", ".")
            for old, new in RENAMED.get(self.kinds.get(name.split(".")[1], ""), {}).items():
                there = there.replace(old, new)
            if there in ours:
                yield Pair(name, p, ours[there])


class Fuser(nn.Module):
    """MMFuser's formulas around transformers' deformable attention."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        channels, levels = config.encoder.hidden, config.connector.levels
        self.gamma1, self.gamma2 = (nn.Parameter(torch.empty(channels)) for _ in range(2))
        self.query_norm, self.feat_norm, self.norm1 = (nn.LayerNorm(channels, eps=1e-6) for _ in range(3))
        self.cross_attn, self.self_attn = (self._attention(config, count) for count in (levels, 1))
        self.side = config.encoder.grid[0]

    def _attention(self, config: ModelConfig, levels: int) -> nn.Module:
        from transformers import DeformableDetrConfig
        from transformers.models.deformable_detr.modeling_deformable_detr import (
            DeformableDetrMultiscaleDeformableAttention as Attention,
        )

        shape = DeformableDetrConfig(d_model=config.encoder.hidden, num_feature_levels=levels)
        return Attention(shape, config.connector.heads, config.connector.points)

    def forward(self, others: list[Tensor], last: Tensor) -> Tensor:
        read = self._read(self.cross_attn, self.query_norm(last), [self.feat_norm(other) for other in others])
        again = self.norm1(read)
        return last + self.gamma1 * (read + self.gamma2 * self._read(self.self_attn, again, [again]))

    def _read(self, attention: nn.Module, query: Tensor, levels: list[Tensor]) -> Tensor:
        centres = (torch.arange(self.side) + 0.5) / self.side
        own = torch.stack(torch.meshgrid(centres, centres, indexing="xy"), -1).view(1, -1, 1, 2)
        sizes = [(self.side, self.side)] * len(levels)
        return attention(
            query,
            encoder_hidden_states=torch.cat(levels, 1),
            reference_points=own.expand(len(query), -1, len(levels), -1),
            spatial_shapes=torch.tensor(sizes),
            spatial_shapes_list=sizes,
            level_start_index=torch.arange(len(levels)) * self.side**2,
        )[0]


class MMFuser(Published):
    """Hidden states of CLIP, fused, without their class tokens."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.vision_model, self.fuser = clip(config.encoder), Fuser(config)
        self.projector = mlp(config.encoder.hidden, config.decoder.hidden)

    def visual(self, tiles: Tensor) -> Tensor:
        see = self.config.encoder
        states = self.vision_model(normalised(tiles, see), output_hidden_states=True).hidden_states
        *others, last = (states[layer][:, 1:] for layer in see.layer)
        return self.projector(self.fuser(others, last)).flatten(0, 1)

    def seen(self, model: VisionLanguageModel) -> Iterator[Pair]:
        ours = dict(model.tower.encoder.named_parameters()) | dict(model.tower.connector.named_parameters())
        for name, p in self.named_parameters():
            if name in ours:
                yield Pair(name, p, ours[name])


@pytest.mark.parametrize(
    ("published", "recipe", "fewer_tokens"),
    [
        (Eagle, "eagle-x5-mini", ["model.connector.grid=5"]),  # every map is resized, up or down
        (MMFuser, "mmfuser-mini", ["model.tiling.tile=56", "model.encoder.image_size=56"]),
    ],
    ids=["eagle", "mmfuser"],
)
def test_twenty_steps_equal_a_plain_loop(
    published: type[Published], recipe: str, fewer_tokens: list[str], one_process: BuildContext
) -> None:
    """In seconds: of the decoder, which has a test of its own, one layer."""
    config = load_recipe(recipe, [*fewer_tokens, "model.decoder.layers=1"]).section("model")
    model = build_model(config, one_process)
    backend.initialise(model, seed=6)
    reference, batches = published(config), global_batches(config)
    reference.take(model)
    first = {pair.name: pair.published.detach().clone() for pair in reference.pairs(model)}
    wanted = plain_losses(reference, batches)
    assert our_losses(model, batches) == pytest.approx(wanted, abs=1e-4)
    assert max(apart(reference.pairs(model), first).values()) < 3e-3  # 3e-4 measured; 1 where norms are decayed

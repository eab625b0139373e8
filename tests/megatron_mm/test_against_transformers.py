"""Twenty steps of a small run against a plain loop over transformers' modules: same data, order, loss and optimizer.

The loop knows no packing, no micro-batches and no megatron-core: it takes one sample at a time, adds up cross
entropies, divides by the global batch's targets, and steps torch's AdamW.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from megavlm.kernels import torchvision
from megavlm.megatron_mm import backend
from megavlm.megatron_mm.config import ModelConfig, Optimizer
from megavlm.megatron_mm.contracts import BuildContext, PackedBatch
from megavlm.megatron_mm.model import VisionLanguageModel, build_model
from megavlm.megatron_mm.training import step as training
from megavlm.megatron_mm.training import wrapping

STEPS, EACH = 20, 4  # visual tokens of a tile
MEAN, STD = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
OPTIONS = Optimizer(lr=3e-3, min_lr=3e-4, warmup_steps=5, weight_decay=0.1, betas=(0.9, 0.95), clip=1.0)
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
LANGUAGE = {
    "model.embed_tokens": "embedding.word_embeddings",
    "model.norm": "decoder.final_layernorm",
    "lm_head": "output_layer",
    "input_layernorm": "input_layernorm",
    "post_attention_layernorm": "pre_mlp_layernorm",
    "self_attn.o_proj": "self_attention.linear_proj",
    "mlp.down_proj": "mlp.linear_fc2",
}


class Published(nn.Module):
    """InternVL's encoder and Qwen2 of transformers, with NVLM's connector written out."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        torchvision.load()  # transformers imports it
        from transformers import InternVLVisionConfig, Qwen2Config, Qwen2ForCausalLM
        from transformers.models.internvl.modeling_internvl import InternVLVisionModel

        see, say = config.encoder, config.decoder
        sides = {"image_size": [see.image_size] * 2, "patch_size": [see.patch_size] * 2}
        self.vision = InternVLVisionModel(
            InternVLVisionConfig(
                hidden_size=see.hidden, num_hidden_layers=see.layers, num_attention_heads=see.heads,
                intermediate_size=see.ffn, hidden_act="gelu", norm_type="rms_norm", layer_norm_eps=see.norm_eps,
                use_qk_norm=True, attention_bias=False, use_mean_pooling=True, use_absolute_position_embeddings=True,
                **sides,
            )
        )  # fmt: skip
        width = 4 * see.hidden
        self.norm = nn.LayerNorm(width, eps=config.connector.norm_eps)
        self.fc1 = nn.Linear(width, config.connector.hidden, bias=False)
        self.fc2 = nn.Linear(config.connector.hidden, say.hidden, bias=False)
        self.language = Qwen2ForCausalLM(
            Qwen2Config(
                vocab_size=say.vocab, hidden_size=say.hidden, intermediate_size=say.ffn, num_hidden_layers=say.layers,
                num_attention_heads=say.heads, num_key_value_heads=say.kv_heads, rms_norm_eps=say.norm_eps,
                rope_parameters={"rope_type": "default", "rope_theta": say.rope_base}, tie_word_embeddings=say.tied,
            )
        )  # fmt: skip

    def forward(self, tokens: Tensor, tiles: Tensor, places: Tensor) -> Tensor:
        """One sample: tokens [n], its tiles, and where their tokens stand -> logits [n, vocab]."""
        embeddings = self.language.model.embed_tokens(tokens)
        if len(tiles):
            patches = self.vision((tiles / 255 - MEAN) / STD).last_hidden_state[:, 1:]
            n, side, c = len(tiles), math.isqrt(patches.shape[1]), patches.shape[2]
            blocks = patches.view(n, side // 2, 2, side // 2, 2, c).permute(0, 1, 3, 2, 4, 5).reshape(n, -1, 4 * c)
            visual = self.fc2(F.gelu(self.fc1(self.norm(blocks)))).flatten(0, 1)
            embeddings = embeddings.index_put((places,), visual)
        return self.language(inputs_embeds=embeddings[None]).logits[0]

    @torch.no_grad()
    def take(self, model: VisionLanguageModel) -> None:
        """The weights of ours."""
        state = {"vision." + name: p for name, p in self.vision.named_parameters()}
        state |= {"language." + name: p for name, p in self.language.named_parameters()}
        connector = model.tower.connector
        pairs = [(self.norm.weight, connector.norm.weight), (self.norm.bias, connector.norm.bias)]
        pairs += [
            (self.fc1.weight, connector.mlp.linear_fc1.weight),
            (self.fc2.weight, connector.mlp.linear_fc2.weight),
        ]
        see, say = dict(model.tower.encoder.named_parameters()), dict(model.stages[0].decoder.named_parameters())
        for name, p in state.items():
            where, _, rest = name.partition(".")
            pairs.append((p, _seen(see, rest, p) if where == "vision" else _said(say, rest, p, model.spec)))
        for mine, theirs in pairs:
            mine.copy_(theirs.view_as(mine))


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
    return ours[prefix + _renamed(rest, VISION)]


def _said(ours: dict[str, Tensor], name: str, p: Tensor, spec: ModelConfig) -> Tensor:
    head, _, tail = name.partition("model.layers.")
    layer, _, rest = tail.partition(".")
    prefix = f"decoder.layers.{layer}." if tail else ""
    rest = rest if tail else head
    kind = rest.rpartition(".")[2]
    if rest.startswith("self_attn.") and rest[10] in "qkv":
        groups, size = spec.decoder.kv_heads, spec.decoder.hidden // spec.decoder.heads
        queries = spec.decoder.heads // groups
        parts = ours[f"{prefix}self_attention.linear_qkv.{kind}"].unflatten(0, (groups, (queries + 2) * size))
        start, end = {"q": (0, queries), "k": (queries, queries + 1), "v": (queries + 1, queries + 2)}[rest[10]]
        return parts[:, start * size : end * size].flatten(0, 1)
    if rest.startswith(("mlp.gate_proj", "mlp.up_proj")):
        return ours[f"{prefix}mlp.linear_fc1.weight"].chunk(2)["up_proj" in rest]
    return ours[prefix + _renamed(rest, LANGUAGE)]


def _renamed(name: str, names: dict[str, str]) -> str:
    old = max((key for key in names if name.startswith(key)), key=len)
    return names[old] + name.removeprefix(old)


@pytest.fixture
def batches() -> list[list[PackedBatch]]:
    """A global batch of two packs for each step: one image, several, text only; few targets and many."""
    lengths = [[(17, 23, 8), (30, 18)], [(9, 9, 30), (48,)]]
    return [[_pack(10 * step + k, sizes) for k, sizes in enumerate(lengths[step % 2])] for step in range(STEPS)]


def _pack(seed: int, lengths: tuple[int, ...]) -> PackedBatch:
    draw = torch.Generator().manual_seed(seed)
    tokens, length = torch.randint(0, 96, (1, 48), generator=draw), torch.tensor([0, *lengths]).cumsum(0)
    labels = tokens.roll(-1, 1)
    labels[0, length[1:] - 1] = -100  # the last token of a sample has nothing after it
    labels[0, :: 2 + seed % 3] = -100
    images = {1: [0], 2: [1, 2], 3: [2, 0, 1]}[len(lengths)]
    images = [count if size >= 2 + EACH * count else 0 for count, size in zip(images, lengths, strict=True)]
    places = [range(int(start) + 1, int(start) + 1 + EACH * n) for start, n in zip(length[:-1], images, strict=True)]
    return PackedBatch(
        tokens=tokens,
        labels=labels,
        loss_weights=(labels >= 0).float(),
        position_ids=torch.cat([torch.arange(n) for n in lengths])[None],
        cu_seqlens=length.int(),
        tiles=torch.randint(0, 256, (sum(images), 3, 28, 28), generator=draw, dtype=torch.uint8),
        visual_index=torch.tensor([place for run in places for place in run], dtype=torch.int64),
    )


def plain_loop(reference: Published, batches: list[list[PackedBatch]]) -> list[float]:
    decayed = [p for p in reference.parameters() if p.dim() > 1 and p.shape[0] != 1]
    rest = [p for p in reference.parameters() if p.dim() <= 1]
    # transformers keeps the class token and the positions with an axis of one more; ours decays the positions only
    positions, token = reference.vision.embeddings.position_embeddings, reference.vision.embeddings.cls_token
    groups = [{"params": [*decayed, positions]}, {"params": [*rest, token], "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1.0, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
    losses = []
    for step, packs in enumerate(batches):
        half = 0.5 * (1 + math.cos(math.pi * (step - 5) / (STEPS - 1 - 5)))
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * (step + 1) / 5 if step < 5 else 3e-4 + (3e-3 - 3e-4) * half
        targets = sum(int((pack.labels >= 0).sum()) for pack in packs)
        total = torch.zeros(())
        for tokens, labels, tiles, places in (sample for pack in packs for sample in _samples(pack)):
            logits = reference(tokens, tiles.float(), places)
            total = total + F.cross_entropy(logits, labels, ignore_index=-100, reduction="sum")
        optimizer.zero_grad()
        (total / targets).backward()
        nn.utils.clip_grad_norm_(reference.parameters(), 1.0)
        optimizer.step()
        losses.append((total / targets).item())
    return losses


def _samples(pack: PackedBatch) -> list[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Tokens, labels, tiles and places of each sample alone."""
    found, tile = [], 0
    for start, end in zip(pack.cu_seqlens[:-1].tolist(), pack.cu_seqlens[1:].tolist(), strict=True):
        places = pack.visual_index[(pack.visual_index >= start) & (pack.visual_index < end)] - start
        tiles = pack.tiles[tile : tile + len(places) // EACH]
        tile += len(tiles)
        found.append((pack.tokens[0, start:end], pack.labels[0, start:end], tiles, places))
    return found


def test_twenty_steps_equal_a_plain_loop(
    one_process: BuildContext, tiny_model: Callable[..., ModelConfig], batches: list[list[PackedBatch]]
) -> None:
    config = tiny_model()
    model = build_model(config, one_process)
    backend.initialise(model, seed=6)
    reference = Published(config)
    reference.take(model)
    wanted = plain_loop(reference, batches)
    wrapped = wrapping.wrap(model)
    optimizer, losses = wrapping.make_optimizer(wrapped, OPTIONS), []
    for step, packs in enumerate(batches):
        wrapping.set_rate(optimizer, OPTIONS, step, STEPS)
        batch = training.cut([packs], wrapped)
        losses.append(training.train_step(wrapped, optimizer, batch, config.objectives[0].build()).loss)
    assert losses == pytest.approx(wanted, abs=1e-4)
    assert {len(pack.tiles) for packs in batches for pack in packs} == {0, 1, 3}

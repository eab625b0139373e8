"""A plain training loop over published classes, and ours on the same data: same order, loss and optimizer.

The plain loop knows no packing, no micro-batches and no megatron-core: it takes one sample at a time, adds up cross
entropies, divides by the global batch's targets, and steps torch's AdamW.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from megavlm.kernels import torchvision
from megavlm.megatron_mm.config import ModelConfig, Optimizer
from megavlm.megatron_mm.contracts import PackedBatch
from megavlm.megatron_mm.model import VisionLanguageModel
from megavlm.megatron_mm.objectives.loss import Sum
from megavlm.megatron_mm.training import step as training
from megavlm.megatron_mm.training import wrapping

STEPS, WARMUP = 20, 5
OPTIONS = Optimizer(lr=3e-3, min_lr=3e-4, warmup_steps=WARMUP, weight_decay=0.1, betas=(0.9, 0.95), clip=1.0)
PACKS = [  # of a step, turn about: tiles and words of each sample; the last one's words fill the pack
    [[(2, 9), (0, 23), (1, None)], [(1, 26), (2, None)]],
    [[(0, 9), (0, 9), (1, None)], [(0, None)]],
]
LANGUAGE = {
    "model.embed_tokens": "embedding.word_embeddings",
    "model.norm": "decoder.final_layernorm",
    "lm_head": "output_layer",
    "input_layernorm": "input_layernorm",
    "post_attention_layernorm": "pre_mlp_layernorm",
    "self_attn.o_proj": "self_attention.linear_proj",
    "mlp.down_proj": "mlp.linear_fc2",
}


class Pair(NamedTuple):
    """A weight of the published classes, by its name there, and the same of ours."""

    name: str
    published: Tensor
    ours: Tensor


class Published(nn.Module):
    """A decoder of transformers behind visual tokens, which a subclass makes from pixels."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        torchvision.load()  # transformers and timm import it
        self.config = config
        self.language = _language(config)

    def visual(self, tiles: Tensor) -> Tensor:
        """Tiles float [n, 3, S, S] in 0..255 -> [n * tokens per tile, width]."""
        raise NotImplementedError

    def seen(self, model: VisionLanguageModel) -> Iterator[Pair]:
        """The weights of encoder and connector."""
        raise NotImplementedError

    def undecayed(self, name: str, p: Tensor) -> bool:
        """Whether weight decay leaves this weight alone: vectors."""
        return p.dim() <= 1

    def forward(self, tokens: Tensor, tiles: Tensor, places: Tensor) -> Tensor:
        """One sample: tokens [n], its tiles, and where their tokens stand -> logits [n, vocab]."""
        embeddings = self.language.model.embed_tokens(tokens)
        if len(tiles):
            embeddings = embeddings.index_put((places,), self.visual(tiles))
        return self.language(inputs_embeds=embeddings[None]).logits[0]

    def loss(self, packs: list[PackedBatch]) -> Tensor:
        """Of a global batch: the cross entropies of its samples, one after another, over its targets."""
        total, targets = torch.zeros(()), sum(int((pack.labels >= 0).sum()) for pack in packs)
        for tokens, labels, tiles, places in (sample for pack in packs for sample in _samples(pack, self.config)):
            logits = self(tokens, tiles.float(), places)
            total = total + F.cross_entropy(logits, labels, ignore_index=-100, reduction="sum")
        return total / targets

    def pairs(self, model: VisionLanguageModel) -> list[Pair]:
        """All weights that ours has too. Training moves ours to other memory: to be asked for again."""
        say = dict(model.stages[0].decoder.named_parameters())
        language = [
            Pair(f"language.{name}", p, said(say, name, p, self.config)) for name, p in self.language.named_parameters()
        ]
        return [*self.seen(model), *language]

    @torch.no_grad()
    def take(self, model: VisionLanguageModel) -> None:
        """The weights of ours, every one of them that learns."""
        pairs = self.pairs(model)
        assert sum(pair.ours.numel() for pair in pairs) == sum(p.numel() for p in model.parameters() if p.requires_grad)
        for pair in pairs:
            pair.published.copy_(pair.ours.view_as(pair.published))


def _language(config: ModelConfig) -> nn.Module:
    import transformers

    say = config.decoder
    family = {"qwen2": "Qwen2", "llama": "Llama"}[say.name]
    shape = getattr(transformers, f"{family}Config")(
        vocab_size=say.vocab, hidden_size=say.hidden, intermediate_size=say.ffn, num_hidden_layers=say.layers,
        num_attention_heads=say.heads, num_key_value_heads=say.kv_heads, rms_norm_eps=say.norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": say.rope_base}, tie_word_embeddings=say.tied,
    )  # fmt: skip
    return getattr(transformers, f"{family}ForCausalLM")(shape)


def said(ours: dict[str, Tensor], name: str, p: Tensor, spec: ModelConfig) -> Tensor:
    """Ours of the decoder's weight that transformers calls `name`."""
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
    return ours[prefix + renamed(rest, LANGUAGE)]


def renamed(name: str, names: dict[str, str]) -> str:
    """`name` with the longest of the prefixes in `names` replaced."""
    old = max((key for key in names if name.startswith(key)), key=len)
    return names[old] + name.removeprefix(old)


def global_batches(config: ModelConfig) -> list[list[PackedBatch]]:
    """A global batch of two packs for each step: one image, several, text only; few targets and many."""
    return [
        [_pack(10 * step + k, samples, config) for k, samples in enumerate(PACKS[step % 2])] for step in range(STEPS)
    ]


def _pack(seed: int, samples: list[tuple[int, int | None]], config: ModelConfig) -> PackedBatch:
    draw, each, tile = torch.Generator().manual_seed(seed), config.tokens_per_tile, config.encoder.image_size
    lengths = [each * tiles + words for tiles, words in samples if words is not None]
    lengths.append(3 * each + 36 - sum(lengths))
    tokens = torch.randint(0, config.decoder.vocab, (1, sum(lengths)), generator=draw)
    length = torch.tensor([0, *lengths]).cumsum(0)
    labels = tokens.roll(-1, 1)
    labels[0, length[1:] - 1] = -100  # the last token of a sample has nothing after it
    labels[0, :: 2 + seed % 3] = -100
    images = [tiles for tiles, _ in samples]
    places = [range(int(start) + 1, int(start) + 1 + each * n) for start, n in zip(length[:-1], images, strict=True)]
    return PackedBatch(
        tokens=tokens,
        labels=labels,
        loss_weights=(labels >= 0).float(),
        position_ids=torch.cat([torch.arange(n) for n in lengths])[None],
        cu_seqlens=length.int(),
        tiles=torch.randint(0, 256, (sum(images), 3, tile, tile), generator=draw, dtype=torch.uint8),
        visual_index=torch.tensor([place for run in places for place in run], dtype=torch.int64),
    )


def plain_losses(
    reference: Published, batches: Sequence[Any], options: Optimizer = OPTIONS, steps: int = STEPS
) -> list[float]:
    """Train the published classes; the loss of each step. What a batch is, `reference.loss` says."""
    optimizer, losses = _adamw(reference, options), []
    most, least, warmup = options.lr, options.min_lr, options.warmup_steps
    for step, batch in enumerate(batches):
        half = 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - 1 - warmup)))
        for group in optimizer.param_groups:
            group["lr"] = most * (step + 1) / warmup if step < warmup else least + (most - least) * half
        loss = reference.loss(batch)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(reference.parameters(), options.clip)
        optimizer.step()
        losses.append(loss.item())
    return losses


def _adamw(reference: Published, options: Optimizer) -> torch.optim.AdamW:
    decayed, rest = [], []
    for name, p in reference.named_parameters():
        (rest if reference.undecayed(name, p) else decayed).append(p)
    groups = [{"params": decayed}, {"params": rest, "weight_decay": 0.0}]
    decay = options.weight_decay
    return torch.optim.AdamW(groups, lr=1.0, betas=options.betas, eps=options.eps, weight_decay=decay)


def _samples(pack: PackedBatch, config: ModelConfig) -> list[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Tokens, labels, tiles and places of each sample alone."""
    found, tile = [], 0
    for start, end in zip(pack.cu_seqlens[:-1].tolist(), pack.cu_seqlens[1:].tolist(), strict=True):
        places = pack.visual_index[(pack.visual_index >= start) & (pack.visual_index < end)] - start
        tiles = pack.tiles[tile : tile + len(places) // config.tokens_per_tile]
        tile += len(tiles)
        found.append((pack.tokens[0, start:end], pack.labels[0, start:end], tiles, places))
    return found


def our_losses(
    model: VisionLanguageModel, batches: list[list[PackedBatch]], options: Optimizer = OPTIONS, steps: int = STEPS
) -> list[float]:
    """Train ours; the loss of each step."""
    return [done.loss for done in our_steps(model, batches, options, steps)]


def our_steps(
    model: VisionLanguageModel, batches: list[list[PackedBatch]], options: Optimizer, steps: int
) -> list[training.StepResult]:
    """Train ours; what each step did."""
    wrapped, loss = wrapping.wrap(model), Sum(model.spec)
    optimizer, done = wrapping.make_optimizer(wrapped, options), []
    for step, packs in enumerate(batches):
        wrapping.set_rate(optimizer, options, step, steps)
        done.append(training.train_step(wrapped, optimizer, training.cut([packs], wrapped), loss))
    return done


def apart(pairs: list[Pair], first: dict[str, Tensor]) -> dict[str, float]:
    """How far the two trainings' weights ended from each other, in parts of the way they went since `first`.

    For each part, which is the first two components of names: single weights may have a gradient that is zero but
    for rounding (a key's bias moves no softmax), and Adam goes somewhere with it.
    """
    squares: dict[str, list[float]] = {}
    for name, published, ours in pairs:
        sums = squares.setdefault(".".join(name.split(".")[:2]), [0.0, 0.0])
        sums[0] += float((published - ours.view_as(published)).detach().square().sum())
        sums[1] += float((published - first[name]).detach().square().sum())
    return {part: math.sqrt(between / way) for part, (between, way) in squares.items()}

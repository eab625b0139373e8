"""Twenty steps of EVE's minis against a plain loop, all trained: transformers' decoder, patch embedding written out.

The plain loop takes one sample at a time and one image at a time; nothing of ours computes there.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from eve_samples import SHAPES, Sample, global_batches, packed
from plain_eve import BothBranches, PatchAligning, PatchEmbedding, PatchEmbeddingV2, Teacher, dissimilarity, in_cells
from plain_loop import STEPS, Pair, Published, apart, our_steps, plain_losses, said
from published_experts import clip
from torch import Tensor, nn

from megavlm.megatron_mm import backend
from megavlm.megatron_mm.config import ModelConfig
from megavlm.megatron_mm.contracts import BuildContext
from megavlm.megatron_mm.model import VisionLanguageModel, build_model
from megavlm.platform.config import load_recipe

pytestmark = pytest.mark.timeout(600)
HD = ["model.tiling.tile=112", "model.tiling.side_step=16", "model.encoder.image_size=112"]  # as in eve-mini's stage hd


class Eve(Published):
    """EVE's patch embedding before transformers' Llama."""

    mismatches: tuple[float, ...] = ()  # of each step, where there is aligning

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.embedding = self.embed(config.encoder, config)

    def embed(self, see: Any, config: ModelConfig) -> nn.Module:
        """The patch embedding, from an image to its visual tokens."""
        return PatchEmbedding(see.channels, config.decoder.hidden, see.patch_size, see.pool, see.heads)

    def seen(self, model: VisionLanguageModel) -> Iterator[Pair]:
        ours = dict(model.tower.encoder.named_parameters()) | dict(model.tower.connector.named_parameters())
        for name, p in self.embedding.named_parameters():
            yield Pair(f"embedding.{name}", p, ours[name])

    def loss(self, packs: list[list[Sample]]) -> Tensor:
        """Of a global batch: the cross entropies of its samples, one after another, over its targets."""
        total, samples = torch.zeros(()), [sample for pack in packs for sample in pack]
        for sample in samples:
            total = total + _cross_entropies(self.logits(sample, self.inputs(sample)), sample)
        return total / _targets(samples)

    def inputs(self, sample: Sample) -> Tensor:
        """Embeddings [n, hidden], an image's tokens in its place."""
        x = self.language.model.embed_tokens(sample.tokens)
        for image, run in zip(sample.images, sample.places, strict=True):
            x = torch.cat([x[: run.start], self.embedding(image.float()), x[run.stop :]])
        return x

    def logits(self, sample: Sample, x: Tensor) -> Tensor:
        """[n, vocab]: images as causal as words are."""
        return self.language(inputs_embeds=x[None]).logits[0]


class AlignedEve(Eve):
    """With the patch aligning's loss: of all images of the global batch alike, and next to it the text's."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.say = next(each for each in config.objectives if each.name == "patch_aligning")
        of = config.decoder
        self.aligning = PatchAligning(of.hidden, self.say.width, of.layers, self.say.every, self.say.heads)
        self.teacher = Teacher(clip(self.say.teacher), self.say.side, self.say.teacher.patch_size)
        self.ratio = config.tiling.tile // self.say.side  # of the image to the one that the teacher sees

    def seen(self, model: VisionLanguageModel) -> Iterator[Pair]:
        yield from super().seen(model)
        ours = dict(model.axis("objectives"))
        for name, p in self.aligning.named_parameters():
            yield Pair(f"aligning.{name}", p, ours[f"patch_aligning.{name}"])

    @torch.no_grad()
    def take(self, model: VisionLanguageModel) -> None:
        """The teacher's too, which has no pairs since it never learns; its last layer is asked for nothing."""
        super().take(model)
        published = dict(self.teacher.model.named_parameters())
        for name, p in model.teacher.named_parameters():
            published[name.removeprefix("objectives.teacher.vision_model.")].copy_(p)

    def loss(self, packs: list[list[Sample]]) -> Tensor:
        """As Eve's, and the images' mean dissimilarity."""
        total, found, samples = torch.zeros(()), [], [sample for pack in packs for sample in pack]
        for sample in samples:
            out = self.language(inputs_embeds=self.inputs(sample)[None], output_hidden_states=True)
            total = total + _cross_entropies(out.logits[0], sample)
            for image, run in zip(sample.images, sample.places, strict=True):
                rows, columns = (side // self.config.encoder.cell for side in image.shape[1:])
                states = [in_cells(x[0, run.start : run.stop], rows, columns, self.ratio) for x in out.hidden_states]
                found.append(dissimilarity(self.aligning(states), self.teacher(image, self.ratio)))
        mismatch = torch.stack(found).mean()
        self.mismatches += (mismatch.item(),)
        return total / _targets(samples) + self.say.weight * mismatch


class EveV2(Eve):
    """EVEv2's patch embedding before Qwen2's layers, each with a second one for visual rows."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        from transformers.models.qwen2.modeling_qwen2 import Qwen2DecoderLayer

        shape = self.language.config
        self.second = nn.ModuleList(Qwen2DecoderLayer(shape, number) for number in range(shape.num_hidden_layers))

    def embed(self, see: Any, config: ModelConfig) -> nn.Module:
        """As Eve's."""
        return PatchEmbeddingV2(see.hidden, config.decoder.hidden, see.patch_size, see.pool)

    def seen(self, model: VisionLanguageModel) -> Iterator[Pair]:
        yield from super().seen(model)
        named = model.stages[0].decoder.named_parameters()
        ours = {name.replace(".visual.", "."): p for name, p in named if ".visual." in name}
        for name, p in self.second.named_parameters():
            yield Pair(f"second.{name}", p, said(ours, f"model.layers.{name}", p, self.config))

    def logits(self, sample: Sample, x: Tensor) -> Tensor:
        """As Eve's."""
        model, n = self.language.model, len(x)
        visual = torch.zeros(n, 1, dtype=torch.bool)
        for run in sample.places:
            visual[run.start : run.stop] = True
        rope = model.rotary_emb(x[None], torch.arange(n)[None])
        for text, second in zip(model.layers, self.second, strict=True):
            x = BothBranches(text, second)(x, rope, visual)
        return self.language.lm_head(model.norm(x))


def _cross_entropies(logits: Tensor, sample: Sample) -> Tensor:
    return F.cross_entropy(logits, sample.labels, ignore_index=-100, reduction="sum")


def _targets(samples: list[Sample]) -> int:
    return sum(int((sample.labels >= 0).sum()) for sample in samples)


@pytest.mark.parametrize(
    ("published", "recipe", "smaller"),
    [
        (AlignedEve, "eve-mini", []),
        (AlignedEve, "eve-mini", [*HD, "model.decoder.layers=2"]),
        (EveV2, "eve-v2-mini", ["model.tiling.tile=56", "model.encoder.image_size=56"]),
    ],
    ids=["eve", "eve_hd", "eve_v2"],
)
def test_twenty_steps_equal_a_plain_loop(
    published: type[Eve], recipe: str, smaller: list[str], one_process: BuildContext
) -> None:
    """With the optimizer of the stage in which everything learns, images of many shapes, several in a sample, none."""
    loaded = load_recipe(recipe, smaller)
    config, stage = loaded.section("model"), loaded.section("stages")["pretrain"]
    model = build_model(config, one_process)
    backend.initialise(model, seed=6)
    reference, batches = published(config), global_batches(config, STEPS)
    reference.take(model)
    first = {pair.name: pair.published.detach().clone() for pair in reference.pairs(model)}
    wanted = plain_losses(reference, batches, stage.optimizer, stage.steps)
    done = our_steps(model, [[packed(pack) for pack in packs] for packs in batches], stage.optimizer, stage.steps)
    assert [each.loss for each in done] == pytest.approx(wanted, abs=1e-4)  # 3e-6 measured
    assert wanted[-1] < wanted[0] - 1  # something is learnt
    mismatches = [each.parts["patch_aligning"] for each in done if each.parts]
    assert mismatches == pytest.approx(list(reference.mismatches), abs=1e-4)
    assert max(apart(reference.pairs(model), first).values()) < 1e-3  # 3e-5 measured


def test_the_samples_have_images_of_many_shapes() -> None:
    config = load_recipe("eve-mini").section("model")
    batches = global_batches(config, len(SHAPES))
    assert {len(sample.images) for packs in batches for pack in packs for sample in pack} == {0, 1, 2}
    lengths = {sum(len(sample.tokens) for sample in pack) for packs in batches for pack in packs}
    assert len(lengths) == 1  # as the pipeline wants
    grids = {image.shape[1:] for packs in batches for pack in packs for sample in pack for image in sample.images}
    assert len(grids) >= 5 and min(min(grid) for grid in grids) == config.tiling.step  # a line is one row

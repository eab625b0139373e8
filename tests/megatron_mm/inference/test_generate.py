"""KV-cached generation against computing everything anew for every token."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from PIL import Image

from megavlm.megatron_mm import backend
from megavlm.megatron_mm.backend import build_context
from megavlm.megatron_mm.config import DataConfig, ModelConfig, Parallel
from megavlm.megatron_mm.contracts import Context, PackedBatch
from megavlm.megatron_mm.data.as_torch import to_torch
from megavlm.megatron_mm.data.assemble import PackArrays
from megavlm.megatron_mm.data.tokenizer import load_tokenizer
from megavlm.megatron_mm.inference.generate import Ask, Batch, batches, generate
from megavlm.megatron_mm.inference.prompt import encode_prompt, user_message
from megavlm.megatron_mm.inference.sampling import Sampling
from megavlm.megatron_mm.model import VisionLanguageModel, build_model
from megavlm.platform.errors import InputError

MODEL = ModelConfig.parse({
    "tiling": {"tile": 28, "max_tiles": 4},
    "encoder": {
        "name": "internvit", "image_size": 28, "patch_size": 7, "layers": 1, "hidden": 32, "heads": 2, "ffn": 64,
    },
    "connector": {"name": "pixel_shuffle_mlp", "hidden": 64},
    "injection": {"name": "inline", "tags": "1d"},
    "decoder": {
        "name": "qwen2", "layers": 2, "hidden": 32, "heads": 4, "kv_heads": 2, "ffn": 64, "vocab": 512,
        "max_positions": 96,
    },
})  # fmt: skip
DATA = DataConfig(tokenizer="mini", template={"name": "chatml", "system": ""}, sets={})
TOKENIZER = load_tokenizer("mini")


@pytest.fixture(scope="module")
def model() -> Iterator[VisionLanguageModel]:
    backend.init_distributed(Parallel(), seed=1)
    built = build_model(MODEL, build_context(Parallel()))
    backend.initialise(built, seed=3)
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.mul_(2)  # away from uniform logits, so that an error would change the choice
    yield built.eval()
    backend.shutdown()


def prompt(text: str = "How many?", pictures: int = 0) -> PackedBatch:
    images = []
    for seed in range(pictures):
        values = np.random.default_rng(seed).integers(0, 256, (30, 50 + 20 * seed, 3), dtype=np.uint8)
        images.append(io.BytesIO())
        Image.fromarray(values).save(images[-1], "PNG")
    data = [image.getvalue() for image in images]
    return encode_prompt([user_message(text, pictures)], data, TOKENIZER, MODEL, DATA)


def whole(batch: PackedBatch, new: list[int]) -> PackedBatch:
    """The prompt and the tokens after it as one sample of a pack, as in training."""
    tokens = np.concatenate([batch.tokens[0].numpy(), np.int64(new)])
    count = len(tokens)
    return to_torch(
        PackArrays(
            tokens=tokens,
            labels=np.full(count, -100),
            loss_weights=np.zeros(count, np.float32),
            position_ids=np.arange(count),
            cu_seqlens=np.int32([0, count]),
            tiles=batch.tiles.numpy(),
            visual_index=batch.visual_index.numpy(),
        )
    )


def logprobs(model: VisionLanguageModel, batch: PackedBatch) -> torch.Tensor:
    """Float [vocab], of the token after `batch`, by a forward pass without a cache."""
    with torch.no_grad():
        return model(batch, gather_logits=True)[0, -1].log_softmax(-1)


def by_id(top: tuple[tuple[int, float], ...]) -> torch.Tensor:
    return torch.tensor([value for _, value in sorted(top)])


@pytest.mark.parametrize("pictures", [0, 1, 2])
def test_cached_logits_equal_a_full_forward_at_every_token(model: VisionLanguageModel, pictures: int) -> None:
    start, new = prompt(pictures=pictures), []
    batch = Batch(model, [Ask(start, max_new_tokens=12, top=512)])
    while batch.open:
        (said,) = batch.step()
        wanted = logprobs(model, whole(start, new))
        torch.testing.assert_close(by_id(said.likely.top), wanted, atol=2e-5, rtol=1e-5)
        assert said.token == int(wanted.argmax()) and said.likely.logprob == dict(said.likely.top)[said.token]
        new.append(said.token)
    assert new == list(generate(model, start, stop=(), max_new_tokens=12))
    assert len(set(new)) > 1 and said.last


def test_a_batch_says_what_each_says_alone_and_its_logits_are_those_of_a_full_forward(
    model: VisionLanguageModel,
) -> None:
    asks = [
        Ask(prompt(), max_new_tokens=9, top=512),
        Ask(prompt("How many squares are there, and of what colour is each of them?", 2), max_new_tokens=12, top=512),
        Ask(prompt("x", 1), max_new_tokens=3, top=512),
        Ask(prompt("And now?"), max_new_tokens=12, top=512, sampling=Sampling(1.0, 0.9, seed=4)),
    ]
    assert len({ask.prompt.length for ask in asks}) == 4
    batch, said = Batch(model, asks), [[] for _ in asks]
    while batch.open:
        for each in batch.step():
            wanted = logprobs(model, whole(asks[each.row].prompt, said[each.row]))
            torch.testing.assert_close(by_id(each.likely.top), wanted, atol=2e-5, rtol=1e-5)
            said[each.row].append(each.token)
    for ask, tokens in zip(asks, said, strict=True):
        alone = generate(model, ask.prompt, stop=(), max_new_tokens=ask.max_new_tokens, sampling=ask.sampling)
        assert tokens == list(alone)
    assert [len(tokens) for tokens in said] == [9, 12, 3, 12]


def test_what_is_dropped_says_no_more_and_the_others_go_on(model: VisionLanguageModel) -> None:
    asks = [Ask(prompt(text), max_new_tokens=8) for text in ("One", "Two words", "And three words")]
    batch, said = Batch(model, asks), [[] for _ in asks]
    while batch.open:
        for each in batch.step():
            said[each.row].append(each.token)
        if len(said[0]) == 3:
            batch.drop([0])
    assert [len(tokens) for tokens in said] == [3, 8, 8]
    assert said[2] == list(generate(model, asks[2].prompt, stop=(), max_new_tokens=8))


def test_prompts_with_tiles_beside_the_sequence_stand_alone() -> None:
    def beside(tiles: int) -> Ask:
        context = Context(*[torch.zeros(tiles, dtype=torch.int64)] * 6)
        return Ask(dataclasses.replace(prompt(), context=context))

    plain, alone = beside(0), beside(1)  # a text put to NVLM-X has a context without tiles
    assert batches([Ask(prompt()), plain, alone, plain, plain, plain], most=2) == [[0, 1], [2], [3, 4], [5]]
    assert batches([alone, alone], most=8) == [[0], [1]]


def test_the_picture_changes_what_is_said(model: VisionLanguageModel) -> None:
    one, other = prompt(pictures=1), prompt(pictures=1)
    other.tiles.copy_(255 - other.tiles)
    first, second = (by_id(Batch(model, [Ask(each, top=512)]).step()[0].likely.top) for each in (one, other))
    assert (first - second).abs().max() > 1e-3


def test_ends_with_the_stop_token(model: VisionLanguageModel) -> None:
    said = list(generate(model, prompt(), stop=(), max_new_tokens=8))
    first = said.index(said[4])
    assert list(generate(model, prompt(), stop={said[4]}, max_new_tokens=8)) == said[: first + 1]


def test_ends_where_the_positions_end(model: VisionLanguageModel) -> None:
    start = prompt()
    said = list(generate(model, start, stop=(), max_new_tokens=1000))
    assert start.tokens.shape[1] + len(said) == 96
    with pytest.raises(InputError, match="96 positions"):
        next(generate(model, prompt("many words " * 40), stop=()))


def test_a_seed_gives_the_same_text_and_another_seed_another(model: VisionLanguageModel) -> None:
    def said(seed: int) -> list[int]:
        return list(generate(model, prompt(), stop=(), max_new_tokens=12, sampling=Sampling(1.0, 0.9, seed)))

    assert said(1) == said(1) != said(2)


def test_a_prompt_is_what_training_sees_up_to_the_answer(model: VisionLanguageModel) -> None:
    start = prompt("How many?", pictures=1)
    text = TOKENIZER.show(
        [t for k, t in enumerate(start.tokens[0].tolist()) if k not in set(start.visual_index.tolist())]
    )
    assert text.replace(" ", "").endswith("How many?<|im_end|>\n<|im_start|>assistant\n".replace(" ", ""))


def test_more_marks_than_images_are_refused() -> None:
    with pytest.raises(InputError, match="2 <image> mark"):
        user_message("<image> and <image>", 1)
    assert user_message("<image> and", 2)["content"] == "<image><image> and"

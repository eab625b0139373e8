"""KV-cached generation against computing everything anew for every token."""

from __future__ import annotations

import io
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from PIL import Image

from megavlm.megatron_mm import backend
from megavlm.megatron_mm.backend import build_context
from megavlm.megatron_mm.config import DataConfig, ModelConfig, Parallel
from megavlm.megatron_mm.contracts import PackedBatch
from megavlm.megatron_mm.data.assemble import PackArrays
from megavlm.megatron_mm.data.loader import to_torch
from megavlm.megatron_mm.data.tokenizer import load_tokenizer
from megavlm.megatron_mm.inference.generate import _Decoder, generate
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


@pytest.mark.parametrize("pictures", [0, 1, 2])
def test_cached_logits_equal_a_full_forward_at_every_token(model: VisionLanguageModel, pictures: int) -> None:
    start = prompt(pictures=pictures)
    decoder, new = _Decoder(model, start, capacity=96), []
    logits = decoder.prompt()
    for _ in range(12):
        with torch.no_grad():
            wanted = model(whole(start, new), gather_logits=True)[0, -1]
        torch.testing.assert_close(logits, wanted, atol=2e-5, rtol=1e-5)
        new.append(int(wanted.argmax()))
        logits = decoder.token(new[-1])
    assert new == list(generate(model, start, stop=(), max_new_tokens=12))
    assert len(set(new)) > 1


def test_the_picture_changes_what_is_said(model: VisionLanguageModel) -> None:
    one, other = prompt(pictures=1), prompt(pictures=1)
    other.tiles.copy_(255 - other.tiles)
    first, second = _Decoder(model, one, 96).prompt(), _Decoder(model, other, 96).prompt()
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

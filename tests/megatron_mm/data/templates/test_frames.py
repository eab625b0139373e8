"""Frames around images token for token as vLLM documents the prompts of NVLM-D, and NVLM's pretraining format."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer

from megavlm.megatron_mm.config import DataConfig
from megavlm.megatron_mm.data.conversation import Chat
from megavlm.megatron_mm.data.templates.chatml import ChatML
from megavlm.megatron_mm.data.tokenizer import SHIPPED, TextTokenizer, load_tokenizer
from megavlm.megatron_mm.injection.inline import Inline
from megavlm.megatron_mm.injection.tags import Placement
from megavlm.platform.images import ImageTiles

FIXTURES = Path(__file__).parent / "fixtures"
QWEN: dict[str, Any] = json.loads((FIXTURES / "qwen_prompts.json").read_text())
SMALL = {"mini": SHIPPED / "mini", "qwen2": FIXTURES / "tokenizers" / "qwen2"}
FRAME = {"image_start": "<Image>", "image_end": "</Image>"}
PER_TILE, PAD = 3, "<|endoftext|>"  # stands for vLLM's <|vision_pad|>: any special token that no text holds


class QwenTexts(TextTokenizer):
    """Qwen2's tokenizer for the texts whose ids are written down; another piece than these is a KeyError."""

    def __init__(self) -> None:
        self.padding = QWEN["special"]["<|endoftext|>"]

    def id_of(self, token: str) -> int:
        return QWEN["special"][token]

    def encode(self, text: str) -> list[int]:
        return list(QWEN["pieces"][text])

    def encode_after(self, text: str, special: bool) -> list[int]:
        return self.encode(text)


def row(tiles: int) -> ImageTiles:
    return ImageTiles(tiles, max(tiles - 1, 1), 1)


def talk(texts: list[str]) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[k % 2], "content": text} for k, text in enumerate(texts)]


@pytest.mark.parametrize("case", QWEN["prompts"], ids=lambda case: case["texts"][0][:20])
def test_qwen2_s_tokens_are_those_of_vllm_s_expansion(case: dict[str, Any]) -> None:
    chat = Chat(
        ChatML(system=QWEN["system"], **FRAME),
        QwenTexts(),
        Inline().placement,
        True,
        lambda image: QWEN["tokens_per_tile"],
    )
    encoded = chat.encode(talk(case["texts"]), [row(tiles) for tiles in case["images"]])
    assert np.where(encoded.visual, QWEN["special"]["<|vision_pad|>"], encoded.tokens).tolist() == case["ids"]


def vllm(engine: Tokenizer, prompt: str, images: list[ImageTiles]) -> list[int]:
    """The prompt as one string; in its tokens each `<image>` and newline is replaced by its image's."""
    ids = engine.encode(prompt, add_special_tokens=False).ids
    mark, out, left = engine.encode("<image>\n", add_special_tokens=False).ids, [], iter(images)
    while ids:
        if ids[: len(mark)] != mark:
            out.append(ids.pop(0))
            continue
        tags = [*(f"<tile_{k}>" for k in range(1, next(left).tiles)), "<tile_global_thumbnail>"]
        whole = "<Image>" + "".join(tag + PAD * PER_TILE for tag in tags) + "</Image>"
        out += [id_ for part in (whole, "\n") for id_ in engine.encode(part, add_special_tokens=False).ids]
        del ids[: len(mark)]
    return out


@pytest.mark.parametrize("tokenizer", SMALL)
@pytest.mark.parametrize("images", [[1], [3], [7], [3, 1], []])
def test_training_writes_what_vllm_s_expansion_gives(tokenizer: str, images: list[int]) -> None:
    texts = ["<image>\n" * len(images) + "What colour is it?", "red"]
    cut = [row(tiles) for tiles in images]
    prompt = f"<|im_start|>user\n{texts[0]}<|im_end|>\n<|im_start|>assistant\n"
    engine = Tokenizer.from_file(str(SMALL[tokenizer] / "tokenizer.json"))
    bound = load_tokenizer(str(SMALL[tokenizer]))
    chat = Chat(ChatML(system="", **FRAME), bound, Inline().placement, True, lambda image: PER_TILE)
    encoded = chat.prompt(talk(texts[:1]), cut)
    assert np.where(encoded.visual, bound.id_of(PAD), encoded.tokens).tolist() == vllm(engine, prompt, cut)
    whole = chat.encode(talk(texts), cut).tokens
    assert np.array_equal(whole[: len(encoded.tokens)], encoded.tokens)


def test_a_tag_that_looks_beside_the_sequence_is_a_text_of_its_own() -> None:
    bound = load_tokenizer(str(SMALL["qwen2"]))
    chat = Chat(
        ChatML(system="", **FRAME),
        bound,
        lambda place: Placement(f"<{place.number}>", True, False),
        True,
        lambda image: PER_TILE,
        True,
    )
    encoded = chat.prompt(talk(["<image>\nWhat?"]), [row(3)])
    texts = ["user\n", "<Image>", "<0>", "<1>", "<2>", "</Image>", "\nWhat?"]
    wanted = [bound.encode(text) for text in texts]
    assert encoded.tokens[1 : 1 + sum(map(len, wanted))].tolist() == [token for ids in wanted for token in ids]


def pretraining(texts: list[str], images: int, **options: Any) -> tuple[str, str]:
    """The text of a sample, each image as `[tags]`, and of what is learnt."""
    data = DataConfig.parse({"tokenizer": "x", "sets": {}, "template": {"name": "nvlm_pretrain", **options}})
    bound = load_tokenizer(str(SMALL["qwen2"]))
    encoded = Chat(data.template, bound, Inline().placement, True, lambda image: 1).encode(
        talk(texts), [row(1)] * images
    )
    tokens = np.where(encoded.visual, bound.id_of(PAD), encoded.tokens)
    return tuple(bound.show(ids.tolist()).replace(PAD, "*") for ids in (tokens, tokens[encoded.target]))


@pytest.mark.parametrize(
    ("texts", "images", "whole"),
    [
        (["<image>\nGive a brief description of the image.", "A group of people."], 1,
         "<Image><tile_global_thumbnail>*</Image> Give a brief description of the image. A group of people.<|im_end|>"),
        (["Give it. <image>", "A dog"], 1, "Give it.<Image><tile_global_thumbnail>*</Image> A dog<|im_end|>"),
        (["<image>", "A dog"], 1, "<Image><tile_global_thumbnail>*</Image> A dog<|im_end|>"),
        (["<image> <image>\nSame?", " No "], 2, 2 * "<Image><tile_global_thumbnail>*</Image>" + " Same? No<|im_end|>"),
        (["Hello", "Hi", "So?", "Yes"], 0, "Hello Hi<|im_end|>So? Yes<|im_end|>"),
    ],
)  # fmt: skip
def test_pretraining_is_figure_11_s_text(texts: list[str], images: int, whole: str) -> None:
    found, learnt = pretraining(texts, images)
    assert found == whole
    assert learnt == "".join(f" {answer.strip()}<|im_end|>" for answer in texts[1::2])
    bare, _ = pretraining(texts, images, image_start="", image_end="")
    assert bare == whole.replace("<Image>", "").replace("</Image>", "")

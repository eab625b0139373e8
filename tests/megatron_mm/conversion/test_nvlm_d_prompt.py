"""Prompts token for token: what vLLM 0.33 makes of an export's chat template and tokenizer is what training read.

`expanded` is vLLM's documented processing over the files of an export: a rendered conversation is tokenised, and each
run of tokens that spells "<image>\\n" is replaced by an image's own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from megavlm.megatron_mm.conversion.nvlm_d import NVLMD
from megavlm.megatron_mm.data.build import StageData
from megavlm.megatron_mm.data.measure import template as chat_of
from megavlm.megatron_mm.data.samples import Message
from megavlm.megatron_mm.data.templates.chatml import ChatML
from megavlm.platform.config import load_recipe
from megavlm.platform.errors import ConfigError
from megavlm.platform.images import ImageTiles

RECIPE = """
model:
  tiling: {tile: 56, max_tiles: 6}
  encoder: {name: internvit, image_size: 56, layers: 1, hidden: 72, heads: 9, dummy_heads: 7, ffn: 96}
  connector: {name: pixel_shuffle_mlp, hidden: 80, norm_eps: 1.0e-5}
  injection: {name: inline, tags: 1d}
  decoder: {name: qwen2, layers: 1, hidden: 64, heads: 4, kv_heads: 2, ffn: 80, vocab: 520, max_positions: 512}
data:
  tokenizer: mini
  template:
    {name: chatml, system: "Follow the user's instruction and answer questions.",
     image_start: "<Image>", image_end: "</Image>"}
  sets: {pairs: somewhere}
stages:
  sft:
    {train: [decoder], steps: 1, optimizer: {lr: 1e-3},
     mixture: {weights: {pairs: 1}, sequence_length: 512, packs_per_batch: 1}}
"""
EACH = 4  # visual tokens of a tile
PAD, MARK = "<|vision_pad|>", "<image>\n"
GRIDS = [
    ImageTiles(1, 1, 1),
    *(ImageTiles(c * r + 1, c, r) for c, r in [(2, 1), (1, 2), (3, 1), (2, 2), (1, 5), (3, 2)]),
]


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> StageData:
    path = tmp_path_factory.mktemp("recipe") / "nvlm.yaml"
    path.write_text(RECIPE)
    return StageData.of(load_recipe(str(path)), "sft")


@pytest.fixture(scope="module")
def served(spec: StageData) -> Callable[[list[Message], Sequence[ImageTiles]], list[int]]:
    """`served(messages, images)`: the token ids of a request, by an export's files alone."""
    from transformers.utils.chat_template_utils import render_jinja_template

    files = NVLMD().files(spec, "bfloat16")
    tokenizer = Tokenizer.from_str(files["tokenizer.json"].decode())

    def serve(messages: list[Message], images: Sequence[ImageTiles]) -> list[int]:
        template = files["chat_template.jinja"].decode()
        text = render_jinja_template([messages], chat_template=template, add_generation_prompt=True)[0][0]
        return expanded(tokenizer, text, [image.tiles for image in images])

    return serve


def expanded(tokenizer: Tokenizer, text: str, counts: Sequence[int]) -> list[int]:
    """A prompt's ids with each image's in place of its mark's; counts: tiles of each, the thumbnail among them."""
    ids, mark = encode(tokenizer, text), encode(tokenizer, MARK)
    out, left, at = [], list(counts), 0
    while at < len(ids):
        if ids[at : at + len(mark)] == mark:
            out += image_ids(tokenizer, left.pop(0))
            at += len(mark)
        else:
            out.append(ids[at])
            at += 1
    assert not left, "an image's mark is not among the tokens"
    return out


def image_ids(tokenizer: Tokenizer, tiles: int) -> list[int]:
    """One image in a prompt: tags and placeholders in one text between <Image> and </Image>, the newline apart."""
    tags = [f"<tile_{k}>" for k in range(1, tiles)] + ["<tile_global_thumbnail>"]
    text = "<Image>" + "".join(tag + PAD * EACH for tag in tags) + "</Image>"
    return encode(tokenizer, text) + encode(tokenizer, "\n")


def encode(tokenizer: Tokenizer, text: str) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False).ids


def trained(spec: StageData, messages: list[Message], images: Sequence[ImageTiles], pad: int) -> list[int]:
    """What our template makes of the same prompt, `pad` at the visual tokens."""
    found = chat_of(spec.model, spec.tokenizer(), spec.data.template).prompt(messages, images)
    return [
        pad if visual else token for token, visual in zip(found.tokens.tolist(), found.visual.tolist(), strict=True)
    ]


def pad_of(spec: StageData) -> int:
    return Tokenizer.from_str(NVLMD().files(spec, "bfloat16")["tokenizer.json"].decode()).token_to_id(PAD)


# A question that begins with white space joins the mark's newline, so that vLLM finds no mark; and a name of a special
# token in it is a special token to a server, ordinary characters in training.
QUESTION = st.text(st.characters(codec="utf-8", exclude_characters="<"), min_size=1, max_size=30).filter(
    lambda text: not text[0].isspace()
)


@settings(deadline=None, max_examples=60)
@given(turns=st.lists(st.tuples(st.lists(st.sampled_from(GRIDS), max_size=2), QUESTION), min_size=1, max_size=3))
def test_a_prompt_is_served_as_it_was_trained(
    spec: StageData, served: Callable[..., list[int]], turns: list[tuple[list[ImageTiles], str]]
) -> None:
    """Texts, images of one tile and of several, several images, several turns."""
    messages: list[dict[str, Any]] = []
    for images, question in turns:
        said = [{"role": "assistant", "content": "yes"}] if messages else []
        messages += [*said, {"role": "user", "content": MARK * len(images) + question}]
    all_images = [image for images, _ in turns for image in images]
    assert trained(spec, messages, all_images, pad_of(spec)) == served(messages, all_images)


def test_other_marks_around_an_image_are_refused(spec: StageData) -> None:
    other = spec.data.template.model_copy(update={"image_end": ""})
    with pytest.raises(ConfigError, match="image_end '': vLLM writes '</Image>'"):
        NVLMD().files(dataclasses.replace(spec, data=spec.data.model_copy(update={"template": other})), "bfloat16")
    with pytest.raises(ConfigError, match="image_start '': vLLM writes '<Image>'"):
        NVLMD().files(dataclasses.replace(spec, data=spec.data.model_copy(update={"template": ChatML()})), "bfloat16")

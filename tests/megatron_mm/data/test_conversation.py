"""ChatML tokenisation against an independent statement of the template, and packed arrays against a slow loop."""

from __future__ import annotations

import jinja2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from megavlm.megatron_mm.data.assemble import IGNORED, Prepared, assemble, grey
from megavlm.megatron_mm.data.conversation import Chat
from megavlm.megatron_mm.data.encoded import Encoded
from megavlm.megatron_mm.data.templates.chatml import ChatML
from megavlm.megatron_mm.data.tokenizer import SHIPPED, load_tokenizer
from megavlm.megatron_mm.injection.inline import Inline
from megavlm.platform.images import ImageTiles

# As Qwen2 publishes it, without its default system prompt.
TEMPLATE = jinja2.Template(
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
)
WHOLE = Tokenizer.from_file(str(SHIPPED / "mini" / "tokenizer.json"))  # reads markers inside a string as special tokens
MINI = load_tokenizer("mini")
PER_TILE = 4


def tag(index: int, count: int) -> str:
    return "<tile_global_thumbnail>" if index == count - 1 else f"<tile_{index + 1}>"


def chat(system: str = "") -> Chat:
    return Chat(ChatML(system=system), MINI, Inline().placement, thumbnail=True, tokens_per_tile=lambda image: PER_TILE)


def row(tiles: int) -> ImageTiles:
    """An image of so many tiles, the last of them its thumbnail."""
    return ImageTiles(tiles, max(tiles - 1, 1), 1)


CHAT = chat()
# A leading space or newline would merge with the header's newline in the joined string; markers are tested elsewhere.
WORDS = st.text(st.characters(blacklist_characters="<|", codec="utf-8"), max_size=20).filter(lambda t: t == t.lstrip())
TURNS = st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=3)


def conversation(turns: list[tuple[str, str]], system: str = "") -> list[dict[str, str]]:
    messages = [{"role": "system", "content": system}] if system else []
    for question, answer in turns:
        messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return messages


def learnt_spans(messages: list[dict[str, str]]) -> list[tuple[int, int]]:
    """Character spans of what is to be learnt in the joined string."""
    spans, at = [], 0
    for message in messages:
        start = at + len(f"<|im_start|>{message['role']}\n")
        end = start + len(message["content"]) + len("<|im_end|>")
        at = end + 1
        if message["role"] == "assistant":
            spans.append((start, end))
    return spans


@settings(deadline=None)
@given(TURNS, st.sampled_from(["", "Answer the questions."]))
def test_tokens_and_mask_are_those_of_the_joined_text(turns: list[tuple[str, str]], system: str) -> None:
    messages = conversation(turns, system)
    joined = WHOLE.encode(TEMPLATE.render(messages=messages), add_special_tokens=False)
    encoded = chat(system).encode(conversation(turns), [])
    assert encoded.tokens.tolist() == joined.ids
    spans = learnt_spans(messages)
    expected = [any(start <= a and b <= end and b > start for start, end in spans) for a, b in joined.offsets]
    assert encoded.target.tolist() == expected


def test_the_conversation_s_own_system_prompt_wins() -> None:
    own = conversation([("a", "b")], "own")
    other = chat("other")
    assert np.array_equal(other.encode(own, []).tokens, CHAT.encode(own, []).tokens)


@pytest.mark.parametrize("tiles", [1, 3])
def test_an_image_is_written_tile_by_tile(tiles: int) -> None:
    encoded = CHAT.encode(conversation([("<image>\nWhat colour?", "red")]), [row(tiles)])
    wanted = [MINI.id_of("<|im_start|>"), *MINI.encode("user\n")]
    for index in range(tiles):
        wanted += [MINI.id_of(tag(index, tiles)), *[0] * PER_TILE]
    assert encoded.tokens[: len(wanted)].tolist() == wanted
    visual = np.flatnonzero(encoded.visual)
    assert len(visual) == tiles * PER_TILE and encoded.tiles == tiles
    assert MINI.show(encoded.tokens[visual[-1] + 1 :].tolist()).startswith("\nWhat colour?<|im_end|>")


def test_a_prompt_is_the_beginning_of_the_whole() -> None:
    whole = CHAT.encode(conversation([("<image>How many?", "two")]), [row(3)]).tokens
    prompt = CHAT.prompt(conversation([("<image>How many?", "two")])[:1], [row(3)]).tokens
    assert np.array_equal(whole[: len(prompt)], prompt)
    assert whole[len(prompt) :].tolist() == [*MINI.encode("two"), MINI.id_of("<|im_end|>"), *MINI.encode("\n")]


def encoded_samples() -> st.SearchStrategy[list[Encoded]]:
    def one(seed: int) -> Encoded:
        rng = np.random.default_rng(seed)
        tiles, text = int(rng.integers(0, 3)), int(rng.integers(1, 9))
        visual = rng.permutation(np.arange(tiles * PER_TILE + text) < tiles * PER_TILE)
        tokens = np.where(visual, 0, rng.integers(1, 512, len(visual)))
        return Encoded(tokens.astype(np.int64), (rng.random(len(visual)) < 0.5) & ~visual, visual, tiles)

    return st.lists(st.integers(0, 10**6).map(one), max_size=4)


@settings(deadline=None)
@given(encoded_samples())
def test_packed_arrays_are_those_of_a_slow_loop(samples: list[Encoded]) -> None:
    length, side = 96, 2
    prepared = [
        Prepared(each, [np.full((each.tiles, 3, side, side), k, np.uint8)], 0.5 + k) for k, each in enumerate(samples)
    ]
    packed = assemble(prepared, length, side, padding=9)
    tokens, labels, weights, positions, visual = [], [], [], [], []
    for number, each in enumerate(samples):
        for k in range(len(each.tokens)):
            learn = k + 1 < len(each.tokens) and each.target[k + 1]
            visual += [len(tokens)] if each.visual[k] else []
            tokens.append(each.tokens[k])
            labels.append(each.tokens[k + 1] if learn else IGNORED)
            weights.append(0.5 + number if learn else 0)
            positions.append(k)
    tail = length - len(tokens)
    assert packed.tokens.tolist() == tokens + [9] * tail
    assert packed.labels.tolist() == labels + [IGNORED] * tail
    assert packed.loss_weights.tolist() == weights + [0] * tail
    assert packed.position_ids.tolist() == positions + list(range(tail))
    assert packed.visual_index.tolist() == visual
    assert packed.cu_seqlens[0] == 0 and packed.cu_seqlens[-1] == length
    assert np.diff(packed.cu_seqlens).tolist() == [len(each.tokens) for each in samples] + [tail]
    assert packed.tiles[:, 0, 0, 0].tolist() == [k for k, each in enumerate(samples) for _ in range(each.tiles)]


def test_a_full_pack_has_no_padding_segment() -> None:
    full = Prepared(CHAT.blank([row(3)], 12), [grey(3, (2, 2))], weight=1.0)
    packed = assemble([full], 12, 2, padding=9)
    assert packed.cu_seqlens.tolist() == [0, 12]
    assert packed.loss_weights.sum() == 0 and len(packed.visual_index) == 3 * PER_TILE


def test_too_much_is_refused() -> None:
    with pytest.raises(ValueError, match="12 tokens do not fit 11"):
        assemble([Prepared(CHAT.blank([], 12), (), 1.0)], 11, 2, 9)

"""Items of a held-out set: what is judged of them, what is refused, and the blind control."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from megavlm.megatron_mm.data.conversation import Chat
from megavlm.megatron_mm.data.templates.chatml import ChatML
from megavlm.megatron_mm.data.tokenizer import load_tokenizer
from megavlm.megatron_mm.evaluation.items import read_items
from megavlm.megatron_mm.injection.inline import Inline
from megavlm.platform.errors import InputError
from megavlm.platform.images.dynamic import Dynamic

TILING = Dynamic(tile=56, max_tiles=4)
CHAT = Chat(ChatML(), load_tokenizer("mini"), Inline().placement, thumbnail=True, tokens_per_tile=lambda image: 4)


def test_reads_items_and_lists_bad_ones_with_their_reason(ask: Callable, picture: Callable, held_out: Callable) -> None:
    says_one = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "1"}]
    reader = held_out([
        ask("a", "How many?", "2", image=picture(1)),
        ("b", {"json": b"{no json"}),
        ask("c", "How many?", "3", image=b"no picture"),
        ("d", {"json": {"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": ""}]}}),
        ("e", {"json": {"messages": says_one, "answer": "2"}}),
    ])  # fmt: skip
    items, problems = read_items(reader, TILING)
    assert [(item.id, item.kind, item.expected, len(item.images)) for item in items] == [("a", "count", "2", 1)]
    reasons = {item.id: item.problem for item in problems}
    assert reasons == {"b": "invalid_json", "c": "image_not_an_image", "d": "empty_turn", "e": "two_answers"}
    assert not any(item.correct for item in problems)


def test_only_the_last_answer_and_its_end_are_targets(held_out: Callable) -> None:
    turns = [("user", "one?"), ("assistant", "first answer"), ("user", "two?"), ("assistant", "second")]
    messages = [{"role": role, "content": content} for role, content in turns]
    items, _ = read_items(held_out([("a", {"json": {"messages": messages}})]), TILING)
    encoded = items[0].encode(CHAT)
    tokenizer = load_tokenizer("mini")
    assert encoded.tokens[encoded.target].tolist() == [*tokenizer.encode("second"), tokenizer.id_of("<|im_end|>")]
    assert np.array_equal(encoded.tokens, CHAT.encode(messages, []).tokens)


def test_blind_control_shows_every_item_another_image_always_the_same(
    ask: Callable, picture: Callable, held_out: Callable
) -> None:
    # Three different images, one of them asked about three times in a row: neighbours share it.
    pictures = [picture(1), picture(1), picture(1), picture(2, 170, 60), picture(3)]
    samples = [ask(f"q{i}", "How many?", "2", image=data) for i, data in enumerate(pictures)]
    reader = held_out([*samples, ask("text", "How many?", "4")])
    plain, _ = read_items(reader, TILING)
    blind, _ = read_items(reader, TILING, shuffle_images=True)
    for before, after in zip(plain[:5], blind[:5], strict=True):
        assert before.images[0].digest != after.images[0].digest
        assert (before.id, before.expected, before.messages) == (after.id, after.expected, after.messages)
    assert blind[5] == plain[5]
    assert blind == read_items(reader, TILING, shuffle_images=True)[0]
    assert {item.images[0].tiles for item in blind[:5]} == {(1, 1, 1), (4, 3, 1)}  # the tiles go with the image


def test_one_image_cannot_be_exchanged(ask: Callable, picture: Callable, held_out: Callable) -> None:
    reader = held_out([ask(f"q{i}", "How many?", "2", image=picture(1)) for i in range(3)])
    with pytest.raises(InputError, match="one image only"):
        read_items(reader, TILING, shuffle_images=True)


def test_an_id_given_twice_is_refused(ask: Callable, held_out: Callable) -> None:
    (_, fields), second = ask("a", "?", "1"), ask("b", "?", "2")
    with pytest.raises(InputError, match="'a' is in the set twice"):
        read_items(held_out([("a", fields), ("c", fields), second]), TILING)

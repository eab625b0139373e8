"""What is a sample to train on, and the reason of everything that is not."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megavlm.megatron_mm.data.samples import BadSample, read_conversation
from megavlm.platform.shards import Sample


def turn(role: str, content: Any) -> dict[str, Any]:
    return {"role": role, "content": content}


GOOD = [turn("user", "a"), turn("assistant", "b")]


def sample(messages: Any, **fields: bytes) -> Sample:
    return Sample("key", {"json": json.dumps({"messages": messages}).encode(), **fields})


def reason(of: Sample) -> str:
    with pytest.raises(BadSample) as raised:
        read_conversation(of)
    assert raised.value.what
    return raised.value.reason


@pytest.mark.parametrize(
    ("messages", "wanted"),
    [
        (None, "no_messages"),
        ([], "no_messages"),
        ("text", "no_messages"),
        ([turn("user", None), turn("assistant", "b")], "no_messages"),
        ([turn("user", ["a"]), turn("assistant", "b")], "no_messages"),
        ([turn("tool", "a"), *GOOD], "unknown_role"),
        ([turn("user", "a"), turn("assistant", " \n")], "empty_turn"),
        ([turn("user", ""), turn("assistant", "b")], "empty_turn"),
        ([turn("user", "\ud83d"), turn("assistant", "b")], "invalid_text"),
        ([turn("assistant", "b")], "no_question"),
        ([turn("system", "s")], "no_question"),
        ([turn("user", "a"), *GOOD], "roles_do_not_alternate"),
        ([*GOOD, turn("assistant", "c")], "roles_do_not_alternate"),
        ([*GOOD, turn("system", "s"), *GOOD], "roles_do_not_alternate"),
        ([*GOOD, turn("user", "c")], "no_answer"),
        ([turn("user", "<image>"), turn("assistant", "b")], "image_count"),
    ],
)
def test_what_is_no_conversation_has_a_reason(messages, wanted):
    assert reason(sample(messages)) == wanted


@pytest.mark.parametrize(
    ("raw", "wanted"), [(b"{", "invalid_json"), (b"[" * 10**5, "invalid_json"), (b"[1]", "no_messages")]
)
def test_what_is_no_object_has_a_reason(raw, wanted):
    assert reason(Sample("key", {"json": raw})) == wanted


def test_a_conversation_keeps_its_texts_and_the_images_order():
    images = {f"{number}.png": bytes([number]) for number in (10, 2, 0, 1)}
    asked = turn("user", "<image><image> and <image>")
    told = [turn("system", ""), asked, turn("assistant", "<image> is no mark here"), turn("user", "<image>"), GOOD[1]]
    read = read_conversation(sample(told, **images))
    assert read.messages == told
    assert read.images == [b"\0", b"\1", b"\2", b"\n"]


@pytest.mark.parametrize("extra", [{}, {"json": b'{"width": 3}'}, {"json": b"[]"}])
def test_an_image_with_its_caption_is_a_question_without_words(extra):
    read = read_conversation(Sample("key", {"jpg": b"x", "txt": b" a dog\n", **extra}))
    assert read.messages == [turn("user", "<image>"), turn("assistant", "a dog")]
    assert read.images == [b"x"]


@pytest.mark.parametrize(
    ("fields", "wanted"),
    [
        ({"txt": b"no image"}, "no_json"),
        ({"jpg": b"x", "txt": b" "}, "no_caption"),
        ({"jpg": b"x"}, "no_json"),
        ({"jpg": b"x", "png": b"y", "txt": b"two"}, "image_count"),
        ({"jpg": b"x", "json": b"{}"}, "no_messages"),
    ],
)
def test_what_is_no_caption_sample_has_a_reason(fields, wanted):
    assert reason(Sample("key", fields)) == wanted


NAMES = st.sampled_from(["role", "content", "messages", "x"])
SCALARS = st.none() | st.text() | st.integers() | st.sampled_from(["user", "assistant"])


@given(st.recursive(SCALARS, lambda inner: st.lists(inner) | st.dictionaries(NAMES, inner)))
def test_whatever_stands_in_the_json_only_bad_samples_are_raised(document):
    try:
        read = read_conversation(Sample("key", {"json": json.dumps(document).encode()}))
    except BadSample as error:
        assert error.reason
    else:
        assert read.messages

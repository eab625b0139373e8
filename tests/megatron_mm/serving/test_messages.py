"""Messages of a chat request as the data room's: where images stand, and what is refused."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megavlm.megatron_mm.serving.asked import ChatAsked, parsed
from megavlm.megatron_mm.serving.limits import Limits, Refused
from megavlm.megatron_mm.serving.messages import check_images, read_messages

PARTS = st.lists(st.one_of(st.binary(min_size=1, max_size=8), st.text("ab \n", min_size=1, max_size=5)), max_size=6)


def part(value: bytes | str) -> dict[str, Any]:
    if isinstance(value, str):
        return {"type": "text", "text": value}
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{base64.b64encode(value).decode()}"}}


@given(PARTS)
def test_images_keep_their_places_and_their_bytes(values: list[bytes | str]) -> None:
    messages, images = read_messages([{"role": "user", "content": [part("x"), *map(part, values)]}])
    assert images == [value for value in values if isinstance(value, bytes)]
    said = messages[0]["content"]
    assert said.count("<image>") == len(images)
    around = "".join("|" if isinstance(value, bytes) else value.replace("\n", "") for value in ["x", *values])
    assert said.replace("<image>", "|").replace("\n", "") == around


def test_texts_side_by_side_are_lines_and_an_image_needs_none() -> None:
    content = [part(b"1"), part("What"), part("is"), part(b"2"), part("this?")]
    (message,), _ = read_messages([{"role": "user", "content": content}])
    assert message == {"role": "user", "content": "<image>What\nis<image>this?"}


@pytest.mark.parametrize(
    "messages",
    [
        [{"role": "system", "content": "a"}],
        [{"role": "user", "content": "a"}, {"role": "system", "content": "a"}, {"role": "user", "content": "b"}],
        [{"role": "user", "content": " "}],
        [{"role": "user", "content": None}],
        [{"role": "user"}],
        [{"role": "user", "content": [{"type": "input_audio"}]}],
        [{"role": "user", "content": ["text"]}],
        [{"role": "user", "content": [{"type": "image_url", "image_url": "data:image/png;base64,AA=="}]}],
        [{"role": "system", "content": [part(b"1")]}, {"role": "user", "content": "b"}],
        [{"role": "user", "content": "a", "tool_calls": []}],
    ],
)
def test_what_is_no_conversation_is_refused(messages: list[dict[str, Any]]) -> None:
    with pytest.raises(Refused) as refused:
        read_messages(messages)
    assert refused.value.status == 400 and str(refused.value.param).startswith("messages")


def test_pixels_are_counted_over_all_images(tools: Any) -> None:
    images = [tools.picture(seed, 100, 100) for seed in range(3)]
    check_images(images, Limits(image_pixels=30_000))
    with pytest.raises(Refused, match="image 2"):
        check_images(images, Limits(image_pixels=29_999))


@pytest.mark.parametrize("text", ["\ud83d\ude00", "plain"])
def test_whole_characters_pass(text: str) -> None:
    body = json.dumps({"model": "m", "messages": [{"role": "user", "content": text}]}).encode()
    assert parsed(ChatAsked, body, "m").messages[0]["content"].encode("utf-16", "surrogatepass")


@pytest.mark.parametrize(
    "body",
    [b'{"model": "\\ud800"}', b'{"\\udfff": 1}', b'{"model": NaN}', b"\xff", b"", b"1" * 6000, b'{"seed": 1e400}'],
)
def test_bodies_that_no_server_could_answer(body: bytes) -> None:
    with pytest.raises(Refused) as refused:
        parsed(ChatAsked, body, "m")
    assert refused.value.status == 400 and refused.value.message.encode()

"""Requests, answers and images: what is sent, what is understood, and what never shows."""

from __future__ import annotations

import base64
import io
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from megavlm.data_curation.recaption.endpoint import MOST_BYTES, Secret, Trouble, body, caption_of
from megavlm.data_curation.recaption.endpoints import EACH, Asking, check_endpoint
from megavlm.data_curation.recaption.picture import picture
from megavlm.data_curation.recaption.question import AboutImage
from megavlm.data_curation.recaption.reply import Reply
from megavlm.platform.errors import ConfigError
from megavlm.platform.images import BadImage, decode

JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["choices", "message", "content", "x"]), inner, max_size=3)
    ),
    max_leaves=12,
)


@given(st.binary() | JSON.map(lambda value: json.dumps(value).encode()))
def test_any_answer_is_a_caption_or_a_trouble_that_may_pass(data):
    found = caption_of(data)
    assert isinstance(found, Reply) and found.text or isinstance(found, Trouble) and found.again


@given(st.text().filter(str.strip), st.none() | st.sampled_from(["stop", "length"]))
def test_the_caption_is_the_first_choices_text(text, finish):
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish}
    found = caption_of(json.dumps({"choices": [choice, {"message": {"content": "second"}}]}).encode())
    assert isinstance(found, Reply)
    assert found.text == text.strip().encode(errors="replace").decode() and found.finish == finish


@pytest.mark.parametrize("data", [b"[" * 100_000, b" " * (MOST_BYTES + 1), b'{"choices": {"0": 1}}', b"9" * 5000])
def test_hostile_answers_are_troubles(data):
    assert isinstance(caption_of(data), Trouble)


def test_the_body_is_that_of_the_api_and_holds_the_image_itself():
    sent = body("m", {"max_tokens": 3}, AboutImage("k", b"\x89bytes", "image/png", "words"))
    assert sent["model"] == "m" and sent["max_tokens"] == 3
    image, text = sent["messages"][0]["content"]
    head, _, data = image["image_url"]["url"].partition(",")
    assert head == "data:image/png;base64" and base64.b64decode(data) == b"\x89bytes"
    assert text == {"type": "text", "text": "words"}


def test_a_secret_shows_nowhere(monkeypatch):
    secret = Secret("sk-abc")
    assert "sk-abc" not in f"{secret!r} {secret}" and secret.hide("key sk-abc!") == "key [key]!"
    assert secret.headers() == {"Authorization": "Bearer sk-abc"} and Secret().headers() == {}


@pytest.mark.parametrize("value", ["", "  ", "sk-line\nbreak", "sk-ключ"])
def test_a_key_that_cannot_be_sent_is_refused_unseen(monkeypatch, value):
    monkeypatch.setenv("D_KEY", value)
    with pytest.raises(ConfigError, match=r"\$D_KEY") as caught:
        Asking(api_key_env="D_KEY").secret()
    assert "sk-" not in str(caught.value)


def test_a_key_written_where_its_variable_belongs_is_not_repeated():
    with pytest.raises(ConfigError) as caught:
        Asking.parse({"api_key_env": "sk-123abc"}, where="asking")
    assert "sk-123abc" not in str(caught.value)


@pytest.mark.parametrize("url", ["http://me:secret@host/v1", "https://host/v1?key=secret", "ftp://host", "host:8000"])
def test_endpoints_that_carry_secrets_or_are_none_are_refused(url):
    with pytest.raises(ConfigError) as caught:
        check_endpoint(url)
    assert "secret" not in str(caught.value)


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_an_image_that_any_server_reads_alike_is_sent_untouched(tools, kind):
    data = encoded(tools.photo(1, 60, 40), kind)
    assert picture(data, 60) == (data, f"image/{kind.lower()}")


def test_a_turned_image_is_sent_upright(tools):
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(tools.photo(1, 60, 40), "JPEG", exif=exif, quality=95)
    sent, mime = picture(data, 100)
    with Image.open(io.BytesIO(sent)) as image:
        assert mime == "image/jpeg" and image.size == (40, 60) and image.getexif().get(0x0112, 1) == 1
        difference = np.asarray(image, float) - decode(data)
    assert np.abs(difference).mean() < 3


@pytest.mark.parametrize(("kind", "mode"), [("GIF", "P"), ("BMP", "RGB"), ("PNG", "RGBA"), ("TIFF", "RGB")])
def test_what_servers_read_differently_is_sent_as_png_with_our_pixels(tools, kind, mode):
    data = encoded(tools.photo(2, 30, 20).convert(mode), kind)
    sent, mime = picture(data, 100)
    assert mime == "image/png"
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(sent))), decode(data))


@given(st.integers(1, 300), st.integers(1, 300), st.integers(1, 200))
def test_no_side_is_longer_than_agreed(width, height, most):
    sent, _ = picture(encoded(Image.new("RGB", (width, height)), "PNG"), most)
    with Image.open(io.BytesIO(sent)) as image:
        assert max(image.size) == min(most, max(width, height))


def test_no_image_is_a_bad_image():
    with pytest.raises(BadImage):
        picture(b"nothing", 100)


def test_every_server_gets_questions_enough_unless_the_recipe_says_how_many():
    assert Asking().manners(8).concurrency == 8 * EACH and Asking(concurrency=5).manners(8).concurrency == 5

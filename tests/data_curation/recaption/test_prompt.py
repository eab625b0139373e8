"""Prompts: placeholders filled once, notes left out, mistakes named."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megavlm.data_curation.recaption.prompt import Prompt, shipped
from megavlm.platform.errors import ConfigError


def load(tmp_path, text: str, fields=("tags",)) -> Prompt:
    path = tmp_path / "prompt.txt"
    path.write_text(text)
    return Prompt.load(str(path), fields)


def test_shipped_prompts_say_whose_words_they_are_and_send_no_note():
    assert shipped() == ["densefusion", "eve"]
    for name in shipped():
        sent = Prompt.load(name, ("tags",)).fill("ALT", json.dumps({"tags": ["dog", "ball"]}))
        assert "wording" not in sent and "#" not in sent and "$" not in sent
        assert ("ALT" in sent and "dog, ball" in sent) == (name == "densefusion")


@given(st.text(), st.text(), st.text(st.characters(exclude_categories=["Cs"])))
def test_values_go_in_as_they_are(tmp_path_factory, alt, tag, other):
    path = tmp_path_factory.getbasetemp() / "values.txt"
    path.write_text("a ${alt_text} b $tags c $$5")
    filled = Prompt.load(str(path), ("tags",)).fill(alt, json.dumps({"tags": [tag, 7], "other": other}))
    assert filled == f"a {alt} b {tag}, 7 c $5"


def test_a_field_that_a_sample_lacks_leaves_its_place_empty(tmp_path):
    prompt = load(tmp_path, "# a note\n  # another\n\n# third\nTags: $tags.\n# not a note\n")
    assert prompt.fill("x", "{}") == prompt.fill("x", '{"tags": null}') == "Tags: .\n# not a note"


@pytest.mark.parametrize(
    ("text", "what"),
    [("Say $alt_txt", "unknown \\$alt_txt"), ("It costs 5$ now", "begins no placeholder"), ("# only notes", "nothing")],
)
def test_a_prompt_that_cannot_be_meant_is_refused(tmp_path, text, what):
    with pytest.raises(ConfigError, match=what):
        load(tmp_path, text)


def test_a_prompt_that_is_not_there_is_refused(tmp_path):
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    for name in (tmp_path / "none.txt", tmp_path, tmp_path / "binary"):
        with pytest.raises(ConfigError, match="no prompt"):
            Prompt.load(str(name))


def test_the_hash_is_of_what_is_sent(tmp_path):
    one, noted, other = (load(tmp_path, text).sha256 for text in ("Describe.", "# note\nDescribe.\n", "Describe"))
    assert one == noted != other

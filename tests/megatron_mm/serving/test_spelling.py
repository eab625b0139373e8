"""Text as its tokens come, against the whole text known at once."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from megavlm.megatron_mm.serving.spelling import Spelling

TEXTS = st.text(alphabet="abé漢😀 ", max_size=24)
STOPS = st.lists(st.text(alphabet="abé漢😀 ", min_size=1, max_size=4), max_size=3)


def spelled(data: bytes, cuts: list[int], stops: list[str]) -> tuple[list[str], bool]:
    """The bytes as tokens cut at `cuts`, one after the other; what was told, and whether it stopped."""
    places = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    tokens = [data[a:b] for a, b in zip(places, places[1:], strict=False)]
    spelling = Spelling(lambda ids: b"".join(tokens[i] for i in ids).decode(errors="replace"), stops)
    told = []
    for token in range(len(tokens)):
        told.append(spelling.add(token))
        if spelling.stopped:
            return told, True
    return [*told, spelling.end()], False


@given(TEXTS, st.lists(st.integers(0, 200)), STOPS)
def test_what_is_told_is_the_text_up_to_the_first_stop(text: str, cuts: list[int], stops: list[str]) -> None:
    told, stopped = spelled(text.encode(), cuts, stops)
    said = "".join(told)
    assert text.startswith(said) and "\ufffd" not in said
    assert stopped == any(stop in text for stop in stops)
    if not stopped:
        assert said == text
    else:
        assert not any(stop in said for stop in stops)
        assert any(text[len(said) :].startswith(stop) for stop in stops)


def test_broken_bytes_come_at_the_end() -> None:
    assert spelled(b"ab\xf0\x9f", [2, 3], []) == (["ab", "", "", "\ufffd"], False)

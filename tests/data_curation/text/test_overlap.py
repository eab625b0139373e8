"""N-gram overlap against brute force on words, and 200 planted leaks."""

from __future__ import annotations

import random
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megavlm.data_curation.text.overlap import OverlapIndex
from megavlm.data_curation.text.words import digest, words_of


def plain_words(text: str) -> list[str]:
    """GPT-3's definition, character by character."""
    kept = (c for c in unicodedata.normalize("NFKC", text).lower() if c.isalnum() or c.isspace())
    return "".join(kept).split()


def brute_force(items: list[str], messages: list[str], n: int, shortest: int) -> bool:
    """Whether an item of n words or more shares n of them in a row, or a shorter one is there whole."""

    def runs(words: list[str], length: int) -> set[tuple[str, ...]]:
        return {tuple(words[i : i + length]) for i in range(len(words) - length + 1)}

    for item, message in ((plain_words(item), plain_words(message)) for item in items for message in messages):
        length = min(n, len(item))
        if not item or (length < shortest and item != message):
            continue
        if runs(item, length) & runs(message, length):
            return True
    return False


TEXT = st.lists(st.sampled_from(["a", "B", "c,", "-", "Ä", "1.", "\n", "d'e"]), max_size=14).map(" ".join)


@settings(max_examples=150)
@given(st.lists(TEXT, max_size=4), st.lists(TEXT, max_size=3), st.integers(1, 5), st.data())
def test_a_leak_is_found_exactly_where_brute_force_finds_one(items, messages, n, data):
    shortest = data.draw(st.integers(1, n))
    index = OverlapIndex({"b": [(i, [item]) for i, item in enumerate(items)]}, n, shortest)
    leak = index.find(messages)
    assert (leak is not None) == brute_force(items, messages, n, shortest)
    if leak is not None:
        assert brute_force([items[leak.item]], messages, n, shortest), "the item that is named has leaked"
        assert any(f" {leak.ngram} " in f" {' '.join(plain_words(message))} " for message in messages)


@given(st.text())
def test_words_are_as_defined(text):
    assert words_of(text) == plain_words(text)


def test_words_of_an_example():
    assert words_of("It's  a \u201cWELL-known\u201d fact:\n\uff12\uff0b\uff12=4, isn\u2019t_it?") == [
        *("its", "a", "wellknown", "fact", "224", "isntit"),
    ]


VOCABULARY = [f"{a}{b}{c}" for a in "bdfgklmnprst" for b in "aeiou" for c in ("n", "r", "st", "l")]


def sentence(rng: random.Random, words: int) -> str:
    return " ".join(rng.choice(VOCABULARY) for _ in range(words))


def shouted(rng: random.Random, text: str) -> str:
    return "".join(c.upper() if rng.random() < 0.5 else c for c in text)


def punctuated(rng: random.Random, text: str) -> str:
    return " ".join(word + rng.choice(["", ",", ".", "!?", "\u201d", ";"]) for word in text.split())


def spaced(rng: random.Random, text: str) -> str:
    return "".join(rng.choice([" ", "\n", "\t ", "\u00a0", "  "]) if c == " " else c for c in text)


def embedded(rng: random.Random, text: str) -> str:
    return f"{sentence(rng, rng.randrange(1, 300))}. {text}? {sentence(rng, rng.randrange(1, 300))}"


def part(rng: random.Random, text: str) -> str:
    """At least 13 words of a longer item; shorter ones whole."""
    words = text.split()
    if len(words) <= 13:
        return text
    start = rng.randrange(len(words) - 12)
    return " ".join(words[start : rng.randrange(start + 13, len(words) + 1)])


DISGUISES = [lambda rng, text: text, shouted, punctuated, spaced, embedded]


@pytest.fixture(scope="module")
def benchmark() -> list[str]:
    """300 items, of 8 to 80 words and a few of 3 to 7."""
    rng = random.Random(1)
    return [sentence(rng, rng.randrange(3, 8) if i % 30 == 0 else rng.randrange(8, 80)) for i in range(300)]


def test_200_planted_leaks_are_found_and_2000_clean_texts_are_left_alone(benchmark):
    rng = random.Random(2)
    index = OverlapIndex({"bench": [(i, [item]) for i, item in enumerate(benchmark)]})
    for number in range(200):
        item = rng.randrange(len(benchmark))
        disguises = rng.sample(DISGUISES, 2) if len(benchmark[item].split()) >= 8 else [shouted, spaced]
        text = part(rng, benchmark[item])
        for disguise in disguises:
            text = disguise(rng, text)
        leak = index.find([sentence(rng, 40), text] if number % 2 else [text, sentence(rng, 40)])
        assert leak is not None and (leak.benchmark, leak.item) == ("bench", item), (number, text)
    clean = [[sentence(rng, rng.randrange(1, 30)), sentence(rng, rng.randrange(1, 400))] for _ in range(2000)]
    assert [leak for leak in map(index.find, clean) if leak is not None] == []


def test_half_an_item_is_no_leak_and_a_short_one_only_as_a_whole_message():
    item = sentence(random.Random(3), 20)
    index = OverlapIndex({"b": [(0, [item]), (1, ["Is it so?"]), (2, ["", "..."])]})
    assert index.find([" ".join(item.split()[:12])]) is None
    found = index.find([" ".join(item.split()[4:17])])
    assert found is not None and (found.item, found.ngram) == (0, " ".join(item.split()[4:17]))
    assert index.find(["I ask: is it so? Yes."]) is None
    assert index.find(["", "is it SO"]) is not None
    assert index.find(["", "!"]) is None


def test_an_index_of_nothing_finds_nothing():
    assert OverlapIndex({}).find(["a b c"]) is None and OverlapIndex({"b": []}).grams == 0


def test_memory_is_12_bytes_per_different_gram():
    items = [(i, [sentence(random.Random(i % 50), 40)]) for i in range(200)]
    index = OverlapIndex({"b": items})
    sizes = sum(table.hashes.nbytes + table.items.nbytes for table in index._tables.values())
    assert index.grams == 50 * 28 and sizes == 12 * index.grams


def test_digests_are_equal_for_equal_words_in_equal_parts():
    assert digest(["user", "Hello,  World!"]) == digest(["user", "hello world"])
    different = [["user", "hello world"], ["user hello", "world"], ["user", "hello", "world"], ["user", "helloworld"]]
    assert len({digest(parts) for parts in different}) == 4

"""Caption rules: each finds what was planted for it, none minds ordinary captions, and fractions are counted right."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megavlm.data_curation.recaption.repetition import repeated_grams, repeated_lines, top_gram
from megavlm.data_curation.recaption.rules import CAPTION_RULES, DEFAULT_RULES, first_broken
from megavlm.data_curation.recaption.words import Caption
from megavlm.data_curation.stages.captions import CheckCaptions
from megavlm.platform.errors import ConfigError

CLEAN = (
    "A brown dog lies on a green couch next to a sleeping cat.",
    "Two children in red raincoats jump into a puddle while their mother watches from the porch.",
    "A shop window with a sign that reads \"I'm sorry, I can't open today.\" Below it stands an empty flower pot.",
    "The photograph shows a street in the rain. On the left there is a tram, on the right there are three people "
    "with umbrellas, and in the background there is a church whose tower disappears in the clouds.",
    "A poster with the words “KEEP CALM AND CARRY ON” on a red background.",
    "Is this a cake? It is shaped like a shoe, with laces of sugar and a sole of dark chocolate!",
    "A bar chart compares the rainfall of four cities (London, Paris, Rome and Oslo) in 2019.",
    "Several boxes are stacked by the wall:\n- a large brown one at the bottom\n- two white ones above it, both open.",
    "The image shows a man who plays the guitar. The man wears a blue shirt and a black hat. The guitar is made of "
    "light wood. Behind the man there is a brick wall with a window, and light falls through the window onto the man.",
    "A robot toy, printed with the letters AI, as an assistant to a chef in a small kitchen.",
    "An old telephone with a rotary dial stands on a wooden desk beside a lamp, a cup and a pile of letters. 📞",
    "This is a close-up of a bee on a yellow flower; its wings are slightly blurred (it is about to take off).",
    "Sorrow marks the face of a woman who is unable to see the sea behind the fence.",
)

PLANTED = {
    "caption_length": ["A dog.", "", "...", "word " * 1001 + "end."],
    "refusal": [
        "I'm sorry, but I can't help with identifying people in images.",
        "I’m sorry, I cannot assist with that request.",
        "I am unable to view the image that you have uploaded here.",
        "Unfortunately, I cannot describe this picture because nothing is attached.",
        "As an AI language model, I do not have the ability to see images.",
        "The picture is unclear. I can't provide a description of it.",
        "I don't see any image attached to your message, could you try again?",
        "Please provide the image that you would like me to describe for you.",
        "No image was provided, so there is nothing that could be described.",
        "Sure! Here is a detailed description of the image that you sent me.",
        "Here is a short description: a dog lies on a couch and sleeps.",
        "I apologize, but the request cannot be fulfilled by me at this time.",
    ],
    "repetitive": [
        "a red car a red car a red car a red car a red car a red car a red car.",
        "The sky is blue and the grass is green. " * 4,
        "A tree stands here.\nA tree stands here.\nA tree stands here.\nThere is also a house on the hill.",
        "There is a man on the left holding an umbrella in his right hand while it rains. To the right of him, there "
        "is a man on the left holding an umbrella in his right hand while it rains.",
        "very very very very very very very very very very very nice picture of somebody.",
    ],
    "incomplete_sentence": [
        "A brown dog lies on a green couch next to",
        "A brown dog lies on a green couch, and beside it,",
        "A brown dog lies on a green couch...",
        "A brown dog lies on a green couch and looks at the…",
        'A poster with the words "KEEP CALM AND CARRY ON',
    ],
    "wrong_language": [
        "Ein brauner Hund liegt auf einem grünen Sofa neben einer schlafenden Katze.",
        "Un perro marrón está acostado en un sofá verde junto a un gato dormido.",
        "一只棕色的狗躺在绿色的沙发上，旁边有一只熟睡的猫。",
        "Коричневая собака лежит на зелёном диване рядом со спящей кошкой.",
    ],
}


@pytest.fixture(scope="module")
def rules():
    return CheckCaptions.parse({"rules": DEFAULT_RULES}).rules


@pytest.mark.parametrize("text", CLEAN)
def test_ordinary_captions_pass_every_rule(rules, text):
    assert first_broken(rules, Caption(text, "stop")) is None


@pytest.mark.parametrize(("reason", "text"), [(reason, text) for reason, texts in PLANTED.items() for text in texts])
def test_what_is_planted_is_found_by_its_rule(rules, reason, text):
    found = first_broken(rules, Caption(text))
    assert found is not None and found[0] == reason and found[1]


@pytest.mark.parametrize("reason", PLANTED)
def test_each_rule_finds_its_plants_alone(reason):
    names = {CAPTION_RULES.load(name).reason: name for name in CAPTION_RULES}
    assert set(names) == set(PLANTED)
    [rule] = CheckCaptions.parse({"rules": [names[reason]]}).rules
    assert all(rule.broken(Caption(text)) for text in PLANTED[reason])
    assert not any(rule.broken(Caption(text)) for text in CLEAN)


def test_a_whole_sentence_that_max_tokens_cut_is_incomplete(rules):
    assert first_broken(rules, Caption(CLEAN[0], "length")) == ("incomplete_sentence", "cut by max_tokens")


WORDS = st.lists(st.sampled_from(["a", "be", "sea", "dee"]), max_size=25)


def plain_top(words, n):
    """Every n-gram that occurs twice, its occurrences taken from the left as long as they do not overlap."""
    best = 0
    for start in range(len(words) - n + 1):
        gram, places = words[start : start + n], []
        for at in range(len(words) - n + 1):
            if words[at : at + n] == gram and (not places or at >= places[-1] + n):
                places.append(at)
        if len(places) > 1:
            best = max(best, len(places) * len("".join(gram)))
    return best / len("".join(words)) if best else 0.0


def plain_repeated(words, n):
    """Mark the words of every n-gram that began further left, going on behind it."""
    marked, at, begins = [False] * len(words), 0, []
    while at + n <= len(words):
        if any(words[b : b + n] == words[at : at + n] for b in begins):
            marked[at : at + n] = [True] * n
            at += n
        else:
            begins.append(at)
            at += 1
    total = len("".join(words))
    return sum(len(word) for word, hit in zip(words, marked, strict=True) if hit) / total if total else 0.0


@given(WORDS, st.integers(1, 5))
def test_fractions_are_those_of_a_plain_reading(words, n):
    gram, count, part = top_gram(words, n)
    assert part == pytest.approx(plain_top(words, n))
    assert (count == 0) == (gram == ()) and (not gram or len(gram) == n)
    assert repeated_grams(words, n) == pytest.approx(plain_repeated(words, n))
    assert 0 <= part <= 1 and 0 <= repeated_grams(words, n) <= 1


@given(st.lists(st.sampled_from(["ab", "cd"] + ["efg"]), min_size=1, max_size=8))
def test_repeated_lines_are_all_but_the_first_of_each(lines):
    again = len(lines) - len(set(lines))
    letters = len("".join(lines)) - len("".join(set(lines)))
    assert repeated_lines(lines) == pytest.approx((again / len(lines), letters / len("".join(lines))))


@given(st.text())
def test_any_text_is_judged(text):
    rules = CheckCaptions.parse({}).rules
    found = first_broken(rules, Caption(text))
    assert found is None or found[0] in PLANTED


@given(st.lists(st.sampled_from(CLEAN), min_size=1, max_size=3, unique=True), st.sampled_from(["", " ", "\n", '"']))
def test_captions_put_together_are_complete_however_they_are_closed(parts, end):
    [rule] = CheckCaptions.parse({"rules": ["incomplete"]}).rules
    assert rule.broken(Caption(" ".join(parts) + end)) is None
    assert rule.broken(Caption(" ".join(parts) + " and" + end)) is not None


def test_scripts_without_spaces_are_counted_by_character():
    assert Caption("一只棕色的狗").words == list("一只棕色的狗")
    assert Caption("It's a well-known 3D sign: “Café № 5”.").words == [
        "it's",
        "a",
        "well-known",
        "3d",
        "sign",
        "café",
        "5",
    ]


@pytest.mark.parametrize(
    ("rule", "what"),
    [
        ({"name": "language", "languages": ["klingon"]}, "klingon"),
        ({"name": "refusal", "also": ["("]}, "regular"),
        ({"name": "repetition", "top_grams": {0: 0.1}}, "0-grams"),
        ({"name": "lenght"}, "lenght"),
    ],
)
def test_rules_that_cannot_work_are_refused(rule, what):
    with pytest.raises(ConfigError, match=what):
        CheckCaptions.parse({"rules": [rule]}, where="check_captions")
    with pytest.raises(ConfigError, match="no rules"):
        CheckCaptions.parse({"rules": []})


def curation(raw, **stages):
    executor = {"name": "in_process", "workers": 0}
    return {"name": "t", "seed": 1, "curation": {"source": {"path": str(raw)}, "stages": stages, "executor": executor}}


def test_the_stage_checks_original_captions_and_counts_each_reason(tools, tmp_path, curate):
    texts = [*CLEAN, *(text for group in PLANTED.values() for text in group if text.strip())]
    samples = [tools.raw(f"{n:04d}", b"\xff\xd8\xff", caption=text) for n, text in enumerate(texts)]
    tools.write_shard(tmp_path / "raw", "00000", samples)
    told = curate(curation(tmp_path / "raw", ingest={}, check_captions={"source": "ingest"}))["funnel"][-1]
    wanted = {reason: sum(1 for text in group if text.strip()) for reason, group in PLANTED.items()}
    assert told["dropped"] == wanted and told["kept"] == len(CLEAN)


def test_it_reads_the_new_captions_where_there_are_any(tools, tmp_path, curate, endpoint, capsys):
    samples = [tools.raw(f"{n}", tools.encode(tools.photo(n, 20, 20)), caption=CLEAN[n]) for n in range(3)]
    tools.write_shard(tmp_path / "raw", "00000", samples)
    new = {"model": "m", "endpoints": [endpoint().url]}  # which says "A dog." of everything
    rules = {"rules": [{"name": "length", "min_words": 3}]}
    tree = curation(tmp_path / "raw", ingest={}, recaption=new, check_captions=rules)
    assert curate(tree)["funnel"][-1]["dropped"] == {"caption_length": 3}
    tree["curation"]["stages"]["check_captions"]["source"] = "ingest"
    assert curate(tree)["funnel"][-1]["kept"] == 3
    before = curation(tmp_path / "raw", ingest={}, check_captions=rules | {"source": "recaption"})
    with pytest.raises(AssertionError):
        curate(before, out="other")
    log = "".join(path.read_text() for path in (tmp_path / "other").rglob("*.log"))
    assert "no new captions to check" in log

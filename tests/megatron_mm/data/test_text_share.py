"""The share of text as one number: reached in every window, refused where it cannot be, and told."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megavlm.megatron_mm.config import Mixture
from megavlm.megatron_mm.data.build import StageData, build_manifest
from megavlm.megatron_mm.data.columns import SizesInMemory
from megavlm.megatron_mm.data.items import Items, Ragged
from megavlm.megatron_mm.data.mixture import draws, global_batches
from megavlm.megatron_mm.data.stats import stats
from megavlm.megatron_mm.data.verb import pack_main, stats_main
from megavlm.megatron_mm.data.weave import weave
from megavlm.platform.config import load_recipe
from megavlm.platform.errors import ConfigError, InputError

CAPACITY = 100
SHARE = ["stages.only.mixture.text_sets=[text]", "stages.only.mixture.text_share=0.3"]


def sizes(lengths: list[int], images: int = 0) -> SizesInMemory:
    """A set of samples with these tokens, each with so many images of one tile."""
    tokens = np.array(lengths, np.int32)
    cut = np.ones((images * len(lengths), 3), np.int16)
    ends = np.arange(len(lengths) + 1, dtype=np.int64) * images
    return SizesInMemory(np.array([0, len(lengths)], np.int64), tokens, tokens // 2, Ragged(cut, ends))


def mixture(**options: object) -> Mixture:
    sets: dict[str, dict] = {"chat": {}, "vqa": {}, "code": {}, "ocr": {}}
    given: dict[str, object] = {
        "sets": sets,
        "text_sets": ["chat", "code"],
        "sequence_length": CAPACITY,
        "packs_per_batch": 1,
    }
    return Mixture.parse(given | options, where="stages.sft.mixture")


def held(seed: int) -> dict[str, SizesInMemory]:
    rng = np.random.default_rng(seed)
    made = {name: rng.integers(1, CAPACITY + 1, count).tolist() for name, count in COUNTS.items()}
    return {name: sizes(lengths, images=name in {"vqa", "ocr"}) for name, lengths in made.items()}


COUNTS = {"chat": 40, "vqa": 700, "code": 9, "ocr": 300}
TEXT = [0, 2]  # numbers of the text sets: their places in the mixture


def take(of: Mixture, count: int, seed: int) -> Items:
    parts: list[Items] = []
    for part in draws(of, held(seed), seed):
        parts.append(part)
        if sum(map(len, parts)) >= count:
            break
    return Items.concat(parts)[:count]


shares = st.floats(0.01, 0.99)


@settings(max_examples=40)
@given(shares, st.integers(0, 3), st.integers(1, 300))
def test_every_window_of_draws_holds_the_share_to_within_one_sample(share: float, seed: int, window: int) -> None:
    drawn = take(mixture(text_share=share), 5000, seed)
    text = np.isin(drawn.set, TEXT)
    for first in range(0, len(drawn) - window + 1, window):
        assert abs(int(text[first : first + window].sum()) - share * window) <= 1 + 1e-6


@settings(max_examples=40)
@given(shares, st.integers(0, 3), st.integers(0, 4000), st.integers(1, 1000))
def test_a_share_of_tokens_is_held_to_within_one_sample(share: float, seed: int, first: int, count: int) -> None:
    drawn = take(mixture(text_share=share, text_share_of="tokens"), 5000, seed)
    window = drawn[first : first + count]
    text = int(window.tokens[np.isin(window.set, TEXT)].sum())
    assert abs(text - share * int(window.tokens.sum())) <= CAPACITY


@pytest.mark.parametrize("size", [7, 64])
def test_every_global_batch_of_samples_holds_the_share(size: int) -> None:
    of = mixture(text_share=0.25, packs_per_batch=None, batch={"unit": "samples", "size": size})
    for rows in itertools.islice(global_batches(of, held(1), 1), 200):
        assert abs(np.isin(rows.items.set, TEXT).sum() - size / 4) <= 1


def test_inside_a_side_sizes_and_weights_decide_as_without_a_share() -> None:
    drawn = np.bincount(take(mixture(text_share=0.4), 40_000, 0).set, minlength=4)
    assert drawn[[0, 2]] == pytest.approx(16_000 * np.array([40, 9]) / 49, abs=3)
    assert drawn[[1, 3]] == pytest.approx(24_000 * np.array([700, 300]) / 1000, abs=3)
    weights = {"chat": 1, "vqa": 3, "code": 4, "ocr": 1}
    of = mixture(sets={}, weights=weights, text_share=0.4)
    drawn = np.bincount(take(of, 40_000, 0).set, minlength=4)
    assert drawn == pytest.approx([16_000 / 5, 24_000 * 3 / 4, 16_000 * 4 / 5, 24_000 / 4], abs=3)


def test_a_share_ends_with_the_sets_of_pictures() -> None:
    """One pass over 1000 pictures at a quarter of text: 1000 pictures and a third as many texts, to within one."""
    of = mixture(sets={"chat": {}, "code": {}, "vqa": {"epochs": 1}, "ocr": {"epochs": 1}}, text_share=0.25)
    whole = Items.concat(list(draws(of, held(0), 0)))
    counts = np.bincount(whole.set, minlength=4)
    assert counts[[2, 3]].tolist() == [700, 300] and abs(counts[:2].sum() - 1000 / 3) <= 1
    assert max(whole.epoch[np.isin(whole.set, [2, 3])]) == 0


def test_no_share_and_a_share_of_nothing() -> None:
    without = mixture(sets={"vqa": {}, "ocr": {}}, text_sets=[])
    nothing = mixture(text_share=0)
    a, b = (take(of, 3000, 2) for of in (without, nothing))
    assert [a.index.tolist(), a.tokens.tolist()] == [b.index.tolist(), b.tokens.tolist()]
    named, plain = mixture(), mixture(text_sets=[])  # naming the text sets changes no draw
    assert take(named, 3000, 2).index.tolist() == take(plain, 3000, 2).index.tolist()


def stream(number: int, lengths: list[int], ends: list[int]) -> Iterator[Items]:
    """Draws of these tokens, in chunks that end at `ends`."""
    for first, last in itertools.pairwise([0, *sorted(ends), len(lengths)]):
        tokens, count = np.array(lengths[first:last], np.int32), last - first
        images = Ragged(np.zeros((0, 3), np.int16), np.zeros(count + 1, np.int64))
        of, none = np.full(count, number, np.int16), np.full(count, -1)
        yield Items(of, np.arange(first, last), none * 0, tokens, tokens, images, none)


LENGTHS = st.lists(st.integers(1, 50), min_size=1, max_size=60)
ENDS = st.lists(st.floats(0, 1), max_size=6)


@given(LENGTHS, LENGTHS, ENDS, ENDS, st.sampled_from(["samples", "tokens"]), st.floats(0.05, 0.95))
def test_chunks_change_nothing_and_the_order_is_the_formulas(
    a: list[int], b: list[int], ends_a: list[float], ends_b: list[float], unit: str, share: float
) -> None:
    """Against the formula with a loop: draws by the middle of their length over their share, until one side ends."""
    places = []
    for number, (lengths, part) in enumerate(((a, share), (b, 1 - share))):
        before = 0
        for index, tokens in enumerate(lengths):
            own = tokens if unit == "tokens" else 1
            places.append(((2 * before + own) / (2 * part), number, index))
            before += own
    last = min(max(place for place, number, _ in places if number == side) for side in (0, 1))
    cut = [[int(end * len(of)) for end in ends] for of, ends in ((a, ends_a), (b, ends_b))]
    woven = weave([stream(0, a, cut[0]), stream(1, b, cut[1])], [share, 1 - share], unit)
    drawn = Items.concat(list(woven))
    expected = [(number, index) for place, number, index in sorted(places) if place <= last]
    assert list(zip(drawn.set.tolist(), drawn.index.tolist(), strict=True)) == expected


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"text_share": 1.0}, r"text_share 1 is not in \[0, 1\)"),
        ({"text_share": -0.1}, r"text_share -0.1 is not in \[0, 1\)"),
        ({"text_sets": []}, "no set is said to be text"),
        ({"text_sets": ["chats"]}, "text_sets names 'chats'"),
        ({"text_sets": ["chat", "code", "vqa", "ocr"]}, "no set beside text_sets"),
        ({"sets": {"chat": {"weight": 0}, "vqa": {"weight": 1}}, "text_sets": ["chat"]}, "no set of text_sets"),
        ({"sets": {"chat": {"epochs": 1}, "vqa": {}}, "text_sets": ["chat"]}, "'chat', and its epochs"),
        ({"sets": {"chat": {"cap": 1}, "vqa": {}}, "text_sets": ["chat"]}, "'chat', and its epochs"),
        ({"sets": {"chat": {}, "vqa": {}, "ocr": {"weight": 1}}, "text_sets": ["chat"]}, "only ocr"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_with_the_way_out(options: dict, what: str) -> None:
    with pytest.raises(ConfigError, match=what) as caught:
        mixture(**{"text_share": 0.2} | options)
    assert caught.value.fix and str(caught.value.where).startswith("stages.sft.mixture.")


def test_ratios_that_a_share_decides_are_not_asked_for() -> None:
    sets = {"text-sft": {}, "vqa": {"weight": 1}}
    of = mixture(sets=sets, text_sets=["text-sft"], text_share=0.25, ratios="required")
    assert of.undecided == []
    assert mixture(sets={"text-sft": {}, "vqa": {}, "ocr": {}}, text_sets=["text-sft"], ratios="required").undecided
    both = mixture(sets={"a": {}, "vqa": {}, "ocr": {}}, text_sets=["a"], text_share=0.25, ratios="required")
    assert both.undecided == ["vqa", "ocr"]


def spec_of(recipe: object, *overrides: str) -> StageData:
    return StageData.of(load_recipe(str(recipe), overrides), "only")


def test_a_set_of_text_that_holds_images_is_refused_when_measured(make_recipe, tmp_path) -> None:
    spec = spec_of(make_recipe(), "stages.only.mixture.text_sets=[vqa]", "stages.only.mixture.text_share=0.5")
    with pytest.raises(InputError, match="'vqa' is said to be text, and 3 of its samples hold an image"):
        build_manifest(spec, tmp_path / "packs")


def test_the_account_tells_the_share_asked_for_and_reached(make_recipe, tmp_path, capsys) -> None:
    recipe, out = make_recipe(), tmp_path / "out"
    assert pack_main([str(recipe), *SHARE, "--out", str(out), "--dry-run", "--json"]) == 0
    planned = json.loads(capsys.readouterr().out)["only"]["text"]
    assert planned == {"sets": ["text"], "asked": 0.3, "of": "samples"}
    assert pack_main([str(recipe), *SHARE, "--out", str(out), "--json"]) == 0
    path = json.loads(capsys.readouterr().out)["only"]["path"]
    assert stats_main([path, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)["text"]
    manifest = build_manifest(spec_of(recipe, *SHARE), tmp_path / "again")
    entries = [entry for row in range(len(manifest)) for entry in manifest[row].entries]
    text = [entry for entry in entries if entry.set == "text"]
    assert told["sets"] == ["text"] and told["asked"] == 0.3 and told["of"] == "samples"
    assert told["samples"] == pytest.approx(len(text) / len(entries), abs=1e-6)
    for key, field in (("tokens", "tokens"), ("tokens_learnt", "targets")):
        part = sum(getattr(entry, field) for entry in text) / sum(getattr(entry, field) for entry in entries)
        assert told[key] == pytest.approx(part, abs=1e-6)
    plain = stats(build_manifest(spec_of(recipe), tmp_path / "plain"))["text"]
    assert plain["sets"] == ["text"] and plain["asked"] is None and plain["samples"] == pytest.approx(0.5, abs=0.02)


def test_a_share_is_part_of_the_fingerprint_where_it_is_used(make_recipe, tmp_path) -> None:
    recipe = make_recipe()
    plain, shared = spec_of(recipe), spec_of(recipe, *SHARE)
    named = spec_of(recipe, SHARE[0])
    assert "text" not in plain.fingerprint() and named.fingerprint() == plain.fingerprint()
    manifests = [build_manifest(spec, tmp_path / name / "packs") for name, spec in (("a", plain), ("b", shared))]
    manifests[0].check(plain.fingerprint(), 1)
    manifests[1].check(shared.fingerprint(), 1)
    for manifest, other in zip(manifests, (shared, plain), strict=True):
        with pytest.raises(ConfigError, match="text: packed with"):
            manifest.check(other.fingerprint(), 1)

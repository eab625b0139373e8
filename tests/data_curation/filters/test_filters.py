"""Every rule against its words, and a user's own from the documentation."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from megavlm.data_curation.filters import FILTERS
from megavlm.data_curation.filters.base import Facts, Filter, parse_filters

PAGE = Path(__file__).resolve().parents[3] / "docs" / "curation.md"
GOOD = Facts("k", "a red fox sleeps", {}, 640, 480, 30.0, "JPEG", 9000)


def rule(use: str, **options) -> Filter:
    return parse_filters([{"use": use, **options}], "extra")[0]


def broken(use: str, *, facts: dict | None = None, meta: dict | None = None, **options) -> bool:
    changed = dataclasses.replace(GOOD, metadata=meta or {}, **(facts or {}))
    return rule(use, **options).breaks(changed) is not None


def test_every_rule_is_named_tested_and_has_a_reason_of_its_own():
    here = Path(__file__).read_text()
    assert all(f'broken("{name}"' in here for name in FILTERS)
    reasons = [FILTERS.load(name).reason for name in FILTERS]
    assert len(set(reasons)) == len(reasons)


sides = st.integers(1, 3000)


@given(sides, sides, st.integers(1, 1000), st.floats(1, 5))
def test_sides_and_aspect_say_what_their_words_say(width, height, least, most):
    facts = {"width": width, "height": height}
    assert broken("sides", facts=facts, min=least) == (width < least or height < least)
    assert broken("sides", facts=facts, min=1, min_pixels=least**2) == (width * height < least**2)
    quotient = max(width / height, height / width)
    if not math.isclose(quotient, most, rel_tol=1e-12):
        assert broken("aspect", facts=facts, max=most) == (quotient > most)


def test_three_to_one_is_not_over_three():
    assert not broken("aspect", facts={"width": 900, "height": 300}) and broken(
        "aspect", facts={"width": 901, "height": 300}
    )


def test_contrast():
    assert broken("contrast", facts={"contrast": 3.9}) and not broken("contrast", facts={"contrast": 4.0})


@pytest.mark.parametrize("value", [None, "x", [1], float("nan"), {}])
def test_a_score_that_is_none_has_not_passed_unless_asked(value):
    columns = {"punsafe": "punsafe", "watermark": "pwatermark", "aesthetic": "aesthetic", "similarity": "similarity"}
    for use, column in columns.items():
        assert broken(use, meta={column: value}) and not broken(use, meta={column: value}, missing="keep")


def test_scores_are_bounds_and_may_be_text():
    assert broken("punsafe", meta={"punsafe": 0.51}) and not broken("punsafe", meta={"punsafe": "0.5"})
    assert broken("watermark", meta={"pwatermark": 0.81}) and not broken("watermark", meta={"pwatermark": 0.8})
    assert broken("similarity", meta={"similarity": 0.27}) and not broken("similarity", meta={"similarity": 0.28})
    assert broken("similarity", meta={"similarity": 0.29}, min=0.3)
    assert broken("aesthetic", meta={"aesthetic": 4.99}) and not broken("aesthetic", meta={"AESTHETIC_SCORE": 5.0})
    assert broken("aesthetic", meta={"aesthetic": 6.9}, min=7) and not broken("aesthetic", meta={"aesthetic": 7}, min=7)


def test_captions():
    assert broken("caption_length", facts={"caption": "two words"})
    assert broken("caption_length", facts={"caption": "a b c"}), "DataComp: more than five characters"
    assert not broken("caption_length", facts={"caption": "a b cd"})
    for caption in ("IMG_2031.JPG", "dsc 0042", "https://x.org/a", "photo-17.png"):
        assert broken("caption_pattern", facts={"caption": caption}), caption
    assert not broken("caption_pattern", facts={"caption": "a photo of img_1.jpg"})
    assert broken("language", meta={"LANGUAGE": "fr"}) and broken("language", meta={})
    assert not broken("language", meta={"language": "en"})


@pytest.mark.parametrize(
    ("extra", "says"),
    [
        ([{"use": "punsave"}], "punsafe"),
        ([{"use": "punsafe", "maximum": 1}], "maximum"),
        ([{"max": 1}], "use"),
        ({"use": "punsafe"}, "list"),
        ([{"use": "json:JSONDecoder"}], "no filter"),
        ([{"use": "nowhere.at_all:X"}], "nowhere"),
        ([{"use": "caption_pattern", "patterns": ["("]}], "regular expression"),
    ],
)
def test_a_wrong_rule_is_refused_with_its_place(extra, says, tools, curate, tmp_path):
    tools.small_crawl(tmp_path / "raw", shards=1, per_shard=2)
    error = curate(tools.recipe(tmp_path / "raw", filter={"min_side": 50, "extra": extra}), code=2)["error"]
    assert says in f"{error['what']} {error['fix']}" and "filter.extra" in error["where"]


def test_the_documented_filter_runs_as_written(tools, curate, tmp_path, monkeypatch):
    section = PAGE.read_text().partition("## A filter of your own")[2].partition("\n## ")[0]
    code, options = re.search(r"```python\n(.*?)```", section, re.S), re.search(r"```yaml\n(.*?)```", section, re.S)
    assert len([line for line in code[1].splitlines() if line.strip()]) <= 10
    (tmp_path / "my_filters.py").write_text(code[1])
    monkeypatch.syspath_prepend(str(tmp_path))
    asked = yaml.safe_load(options[1])["filter"] | {"min_side": 50}
    meta = [
        {"LICENSE": "CC0", "punsafe": 0.1},
        {"LICENSE": "CC-BY", "punsafe": 0.1},
        {"LICENSE": "CC0", "punsafe": 0.45},
    ]
    photos = [tools.encode(tools.photo(i)) for i in range(4)]
    samples = [tools.raw(f"{i}", photos[i], meta=json.dumps(one).encode()) for i, one in enumerate(meta)]
    samples.append(tools.raw("3", photos[3], caption="DSC_0001", meta=json.dumps(meta[0]).encode()))
    tools.write_shard(tmp_path / "raw", "00000", samples)
    tree = tools.recipe(tmp_path / "raw")
    tree["curation"]["stages"] = {"ingest": {}, "filter": asked}
    line = curate(tree)["funnel"][1]
    assert line["dropped"] == {"license": 1, "unsafe": 1, "no_caption": 1} and line["kept"] == 1

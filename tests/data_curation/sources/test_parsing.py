"""Keys and JSON records against what they must be, for anything anyone may have written."""

from __future__ import annotations

import io
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megavlm.data_curation.sources import json_records as module
from megavlm.data_curation.sources.hugging_face import image_kind
from megavlm.data_curation.sources.json_records import json_records
from megavlm.data_curation.sources.keys import usable_key
from megavlm.platform.shards import split_name

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@pytest.fixture(params=[1, 7, 1 << 20])
def chunk(request, monkeypatch):
    monkeypatch.setattr(module, "CHUNK", request.param)


def read(text: str) -> list:
    return list(json_records(io.BytesIO(text.encode())))


@settings(max_examples=25, deadline=None, suppress_health_check=["function_scoped_fixture"])
@given(st.lists(values, max_size=5), st.sampled_from([None, 1]), st.booleans())
def test_records_are_those_of_the_json_module_whatever_the_pieces(chunk, records, indent, ascii_only):
    whole = json.dumps(records, indent=indent, ensure_ascii=ascii_only)
    assert read(whole) == [(value, None) for value in records]
    lines = [value for value in records if not isinstance(value, list)]
    assert read("\n".join(map(json.dumps, lines))) == [(value, None) for value in lines]


@settings(max_examples=25, deadline=None, suppress_health_check=["function_scoped_fixture"])
@given(st.lists(st.dictionaries(st.text(max_size=3), st.integers()), min_size=1, max_size=4), st.data())
def test_a_list_cut_anywhere_gives_what_came_before_and_says_so(chunk, records, data):
    whole = json.dumps(records)
    found = read(whole[: data.draw(st.integers(1, len(whole) - 1))])
    *before, (value, wrong) = found
    assert [one for one, _ in before] == records[: len(before)] and not any(error for _, error in before)
    assert value is None and "damage" in wrong


def test_a_bad_line_costs_itself(chunk):
    assert [error is None for _, error in read('{"a": 1}\n{"b\n\n{"c": 2}')] == [True, False, True]


@given(st.text(max_size=30))
def test_a_key_reads_back_from_a_tar_as_itself(name):
    key = usable_key(name.encode("utf-8", "replace").decode())
    assert split_name(f"{key}.jpg") == (key, "jpg") and ".." not in key.split("/") and not key.startswith("/")
    assert usable_key(key) == key


def test_kinds_by_first_bytes(tools):
    for format, kind in {"JPEG": "jpg", "PNG": "png", "GIF": "gif", "BMP": "bmp", "WEBP": "webp", "TIFF": "tif", "AVIF": "avif"}.items():  # fmt: skip  # noqa: E501
        assert image_kind(tools.encode(tools.photo(1), format)) == kind
    assert image_kind(b"") == "jpg"

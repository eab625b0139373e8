"""What crosses between a program and its tests."""

from __future__ import annotations

import json
import math
from collections import Counter, OrderedDict
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megavlm.megatron_mm.evaluation.code_inside import decode, encode

SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary()
KEYS = SCALARS | st.tuples(SCALARS, SCALARS) | st.frozensets(SCALARS)
PLAIN = st.recursive(
    SCALARS | st.complex_numbers(allow_nan=False) | st.sets(KEYS),
    lambda inner: st.lists(inner) | st.lists(inner).map(tuple) | st.dictionaries(KEYS, inner),
    max_leaves=20,
)


def crossed(value: Any) -> Any:
    """`value` after the way through a line of JSON; nothing may have to stay at home."""

    def keep(left: Any) -> int:
        raise AssertionError(f"{left!r} stayed at home")

    return decode(json.loads(json.dumps(encode(value, keep))), lambda number: number)


def typed(value: Any) -> Any:
    """The value with every type said: True equals 1, and a set has no order."""
    if isinstance(value, dict):
        return dict, [(typed(key), typed(item)) for key, item in value.items()]
    if isinstance(value, list | tuple):
        return type(value), [typed(item) for item in value]
    if isinstance(value, set | frozenset):
        return type(value), sorted(str(typed(item)) for item in value)
    return type(value), value


@settings(max_examples=50)
@given(PLAIN)
def test_plain_values_cross_unchanged(value):
    assert typed(crossed(value)) == typed(value)


def test_values_cross_as_their_base_type():
    class Sly(int):
        def __eq__(self, other: object) -> bool:
            return True

        __hash__ = int.__hash__

    for value, plain in [(Sly(3), 3), (Counter("aab"), {"a": 2, "b": 1}), (OrderedDict(a=1), {"a": 1}), (int, int)]:
        after = crossed(value)
        assert type(after) is type(plain) and plain == after
    assert crossed(Sly(3)) != 4 and math.isnan(crossed(float("nan"))) and crossed(7**20000) == 7**20000


def test_other_values_stay_at_home():
    kept: list[Any] = []
    value = [object(), 1, lambda: 2]
    line = json.dumps(encode(value, lambda item: kept.append(item) or len(kept) - 1))
    assert decode(json.loads(line), kept.__getitem__) == value and kept == [value[0], value[2]]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
)
TAGS = st.sampled_from(["int", "list", "tuple", "set", "frozenset", "dict", "complex", "bytes", "type", "kept", "code"])


@given(st.lists(TAGS | JSON, max_size=3) | st.tuples(TAGS, JSON).map(list))
def test_an_answer_that_is_none_is_refused_or_a_plain_value(sent):
    """Whatever a program writes in place of an answer: an error of one item, or a value of built-in type."""
    try:
        value = decode(sent, lambda number: number)
    except (ValueError, TypeError, RecursionError):
        return
    plain = (bool, int, float, str, list, tuple, set, frozenset, dict, complex, bytes, type, type(None))
    assert type(value) in plain


@pytest.mark.parametrize("name", ["exec", "eval", "open", "__import__", "print", "help"])
def test_no_built_in_function_is_handed_out(name):
    with pytest.raises(ValueError, match="no answer"):
        decode(["type", name], lambda number: number)

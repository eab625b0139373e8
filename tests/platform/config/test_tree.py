from __future__ import annotations

import copy

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from megavlm.platform.config.tree import leaves, merge, nest, parse_override, parse_yaml
from megavlm.platform.errors import ConfigError

names = st.from_regex(r"[a-z][a-z0-9_-]{0,6}", fullmatch=True).filter(lambda name: name != "name")
scalars = st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.booleans() | st.text(max_size=8)
trees = st.recursive(scalars, lambda inner: st.dictionaries(names, inner, min_size=1, max_size=3), max_leaves=8).filter(
    lambda tree: isinstance(tree, dict)
)


@pytest.mark.parametrize(
    ("text", "value"),
    [("1e-4", 1e-4), ("1E5", 1e5), ("-2.5e+3", -2500.0), ("3.e2", 300.0), ("1e", "1e"), ("e4", "e4"), ("0.1", 0.1)],
)
def test_exponents_are_numbers(text, value):
    read = parse_yaml(text, where="here")
    assert read == value and type(read) is type(value)


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_every_float_as_python_writes_it_is_read_back(value):
    assert parse_override(f"lr={value!r}") == ("lr", value)


@pytest.mark.parametrize("text", ["a: 1\na: 2", "x: {b: 1, b: 2}", "- {c: 1, c: 1}"])
def test_a_key_given_twice_is_refused_with_its_line(text):
    with pytest.raises(ConfigError, match="is given twice") as error:
        parse_yaml(text, where="file.yaml")
    assert "line" in error.value.where


@pytest.mark.parametrize("text", ["a: [1", "a: b: c", "\t- x", "!!python/object/apply:os.system ['true']"])
def test_what_is_no_plain_yaml_is_refused(text):
    with pytest.raises(ConfigError) as error:
        parse_yaml(text, where="file.yaml")
    assert error.value.where == "file.yaml" and error.value.exit_code == 2


@given(st.lists(names, min_size=1, max_size=4).map(".".join), scalars | st.lists(st.integers(), max_size=3))
def test_an_override_is_a_dotted_key_and_a_yaml_value(key, value):
    text = f"{key}={yaml.safe_dump(value, default_flow_style=True, default_style=_quoted(value), width=10**9)}"
    assert parse_override(text.removesuffix("...\n")) == (key, value)


def _quoted(value):
    return '"' if isinstance(value, str) else None


@pytest.mark.parametrize("text", ["steps", "=1", "a..b=1", ".a=1", "a b=1", "a.=1"])
def test_what_is_no_override_is_refused(text):
    with pytest.raises(ConfigError, match="is no override"):
        parse_override(text)


def test_the_value_may_hold_an_equals_sign():
    assert parse_override("a.b=c=d") == ("a.b", "c=d")


@given(trees)
def test_nesting_every_leaf_builds_the_tree_again(tree):
    built: dict = {}
    for key, value in leaves(tree):
        built = merge(built, nest(key, value))
    assert built == tree


@given(trees, trees)
def test_the_upper_tree_wins_and_neither_is_changed(under, over):
    before = copy.deepcopy((under, over))
    merged = merge(under, over)
    assert before == (under, over)
    flat, upper = dict(leaves(merged)), dict(leaves(over))
    assert {key: flat[key] for key in upper} == upper
    hidden = {key for key in dict(leaves(under)) if any(_meet(key, other) for other in upper)}
    assert set(flat) == set(upper) | (set(dict(leaves(under))) - hidden)


def _meet(a: str, b: str) -> bool:
    return a == b or a.startswith(f"{b}.") or b.startswith(f"{a}.")


def test_null_removes_and_another_point_replaces_whole():
    under = {"a": {"b": 1, "c": 2}, "encoder": {"name": "x", "width": 3}}
    assert merge(under, {"a": {"b": None}}) == {"a": {"c": 2}, "encoder": {"name": "x", "width": 3}}
    assert merge(under, {"encoder": {"name": "y"}})["encoder"] == {"name": "y"}
    assert merge(under, {"encoder": {"name": "x", "depth": 1}})["encoder"] == {"name": "x", "width": 3, "depth": 1}
    assert merge({}, {"a": {"b": None, "c": {"d": None, "e": 1}}}) == {"a": {"c": {"e": 1}}}

"""Which rows a list blocks, against the rule written plainly."""

from __future__ import annotations

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megavlm.data_curation.removal.blocklist import Blocklist, plain_id

FEW = st.sampled_from(["a", "b", "a-b", "http://x/1", "0" * 64, ""])
ROW = st.fixed_dictionaries(
    {"key": FEW, "source_shard": st.sampled_from(["a", "b"]), "source_key": FEW, "url": st.none() | FEW, "sha256": FEW}
)
PLACE = st.fixed_dictionaries({"shard": st.sampled_from(["a", "b"]), "key": FEW})
LINE = st.fixed_dictionaries({"id": FEW, "samples": st.lists(PLACE, max_size=2)})
COLUMNS = ("key", "source_shard", "source_key", "url", "sha256")


@settings(max_examples=150, deadline=None)
@given(
    rows=st.lists(ROW, max_size=6), lines=st.lists(LINE, max_size=4), columns=st.sampled_from([COLUMNS, COLUMNS[:3]])
)
def test_a_row_goes_when_a_name_of_it_or_its_place_is_listed(rows, lines, columns):
    table = pa.table({name: pa.array([row[name] for row in rows], pa.string()) for name in columns})
    rows = [{name: row[name] for name in columns} for row in rows]

    def goes(row):
        named = any(line["id"] == row.get(kind) for line in lines for kind in ("key", "source_key", "url", "sha256"))
        place = {"shard": row["source_shard"], "key": row["source_key"]}
        return named or any(place in line["samples"] for line in lines)

    blocked = Blocklist(tuple(lines))
    assert blocked.blocked(table).to_pylist() == [row for row in rows if goes(row)]
    assert blocked.allowed(table).to_pylist() == [row for row in rows if not goes(row)]


def test_a_list_survives_the_disk_and_torn_lines(tmp_path):
    lines = ({"id": "é", "samples": [], "reason": 'a "b"'}, {"id": "x"})
    Blocklist(lines).write(tmp_path / "list")
    assert Blocklist.read(tmp_path / "list").lines == lines
    with (tmp_path / "list").open("a") as file:
        file.write('[1]\n{"other": 1}\n{"id": "cut')
    assert Blocklist.read(tmp_path / "list").lines == lines and Blocklist.read(tmp_path / "none").lines == ()


@pytest.mark.parametrize(("given", "kept"), [("AB" * 32, "ab" * 32), ("AB" * 31, "AB" * 31), ("http://X", "http://X")])
def test_digests_are_compared_in_lower_case(given, kept):
    assert plain_id(given) == kept


def test_the_state_tells_other_lists_and_not_other_dates():
    one = Blocklist(({"id": "a", "date": "x", "samples": [{"shard": "s", "key": "k"}]},))
    assert one.state() == Blocklist(({"id": "a", "date": "y", "samples": [{"shard": "s", "key": "k"}]},)).state()
    assert one.state() != Blocklist(({"id": "a"},)).state() != Blocklist(({"id": "b"},)).state()

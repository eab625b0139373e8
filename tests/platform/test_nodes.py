from __future__ import annotations

import pytest

from megavlm.platform.errors import ConfigError
from megavlm.platform.nodes import COUNT, MEETING, RANK, Place, place


@pytest.fixture
def setting(monkeypatch):
    def write(count=None, rank=None, meeting=None):
        for name, value in ((COUNT, count), (RANK, rank), (MEETING, meeting)):
            monkeypatch.delenv(name, raising=False) if value is None else monkeypatch.setenv(name, value)

    return write


def test_a_process_that_nobody_placed_is_alone_and_leads(setting):
    setting()
    assert place() == Place(1, 0, "localhost", 0)
    assert place().alone and place().leads


def test_one_of_several_knows_its_rank_and_where_they_meet(setting):
    setting("4", "3", "node-a.cluster:29501")
    assert place() == Place(4, 3, "node-a.cluster", 29501)
    assert not place().alone and not place().leads
    setting("2", "0", "10.0.0.1:20000")
    assert place().leads and place().host == "10.0.0.1"


@pytest.mark.parametrize(
    ("count", "rank", "meeting"),
    [
        ("2", "2", "a:1"),  # ranks count from 0
        ("2", "0", None),
        ("2", "0", "a"),
        ("2", "0", "a b:1"),
        ("two", "0", "a:1"),
        ("2", "-1", "a:1"),
    ],
)
def test_a_place_that_cannot_be_is_refused_with_what_was_given(setting, count, rank, meeting):
    setting(count, rank, meeting)
    with pytest.raises(ConfigError) as error:
        place()
    assert "MEGAVLM_" in str(error.value)

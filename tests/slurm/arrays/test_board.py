"""What driver and workers of an array share, without a Slurm."""

from __future__ import annotations

import os
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megavlm.platform.executor import Job
from megavlm.slurm.arrays.board import MOST_BLOCKS, SILENT_SECONDS, Board, Ending, cut


@pytest.fixture
def board(tmp_path):
    """Thirty commands, of which all but the tenth are to be done, for two workers."""
    job = Job("x", [["recipes", "show", str(number)] for number in range(30)], tmp_path / "logs")
    return Board.make(tmp_path / "board", job, [index for index in range(30) if index != 10], workers=2)


@given(st.lists(st.integers(), max_size=3000, unique=True), st.integers(1, MOST_BLOCKS))
def test_blocks_hold_everything_once_and_are_alike(items, most):
    blocks = cut(items, most)
    assert [item for block in blocks for item in block] == items
    assert len(blocks) == min(len(items), most)
    assert not blocks or max(map(len, blocks)) - min(map(len, blocks)) <= 1


def test_every_block_has_one_worker_and_the_same_in_its_next_life(board):
    blocks = board.commands().blocks
    assert len(blocks) == 16
    first, second = board.lease(0, blocks), board.lease(1, blocks)
    had = [next(first), next(second), next(second)]
    again = board.lease(1, blocks)
    assert [next(again), next(again)] == had[1:], "a requeued worker goes on with what it had leased"
    rest = [*first, *again]
    assert sorted(index for block in [*had, *rest] for index in block) == [n for n in range(30) if n != 10]


def test_more_workers_than_blocks_find_nothing_left(board):
    blocks = board.commands().blocks[:3]
    assert [list(board.lease(slot, blocks)) for slot in (1, 0, 7)] == [[blocks[1], blocks[2], blocks[0]], [], []]


def test_what_the_workers_tell_is_read_back(board):
    board.begin(0, 3)
    board.begin(1, 3)
    board.end(1, Ending(3, 2, 0.5))
    board.begin(1, 4)
    told = board.told()
    assert told.begun == {3: [0, 1], 4: [1]}
    assert told.endings == {3: Ending(3, 2, 0.5)}
    assert board.commands().tasks["4"] == ["recipes", "show", "4"]


def test_a_worker_hears_that_its_driver_is_gone(board):
    assert board.driven(0)
    long_ago = time.time() - SILENT_SECONDS - 60
    os.utime(board.folder / "driver", (long_ago, long_ago))
    assert not board.driven(0)
    board.beat()
    assert board.driven(0)

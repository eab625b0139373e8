"""Heartbeats on a clock of the test's own: what is a hang, and what only looks like one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megavlm.slurm.profile import Hang
from megavlm.slurm.supervisor.watch import Watch

LIMITS = Hang(seconds=60, steps=10, other_seconds=1800)


class World:
    """Ranks that beat when told, and a supervisor that looks every two seconds."""

    def __init__(self, ranks=2, expected=True, limits=LIMITS):
        self.now, self.beats = 0.0, {}
        self.watch = Watch(limits, expected, clock=lambda: self.now)
        self.ranks = range(ranks)

    def beat(self, step, doing="step", ranks=None, clock=0.0):
        for rank in self.ranks if ranks is None else ranks:
            self.beats[rank] = {"rank": rank, "step": step, "doing": doing, "time": self.now + clock}

    def pass_by(self, seconds):
        """The first silence that shows within so many seconds."""
        end = self.now + seconds
        while self.now < end:
            self.now += 2.0
            if silence := self.watch.look(list(self.beats.values())):
                return silence
        return None

    def train(self, steps, seconds=2.0, first=0):
        """Start, then steps, all ranks together."""
        self.beat(first, "start")
        assert self.pass_by(2) is None
        for step in range(first + 1, first + steps + 1):
            assert self.pass_by(seconds) is None
            self.beat(step)


def test_silence_of_all_is_a_hang_after_sixty_seconds():
    world = World()
    world.train(20)
    silence = world.pass_by(100)
    assert 60 < silence.seconds <= 64 and (silence.step, silence.ranks) == (20, (0, 1))


def test_silence_of_one_is_a_hang_while_the_others_still_beat():
    world = World()
    world.train(5)
    for step in range(6, 60):
        world.beat(step, ranks=[0])
        if silence := world.pass_by(2):
            break
    assert silence.ranks == (1,) and 60 < silence.seconds <= 64


def test_slow_steps_get_ten_of_their_own_length():
    world = World()
    world.train(5, seconds=30)
    assert world.pass_by(298) is None
    assert world.pass_by(10).seconds > 300


@pytest.mark.parametrize("doing", ["start", "save", "evaluate", "pack"])
def test_one_rank_that_does_something_else_gives_all_of_them_time(doing):
    world = World()
    world.train(5)
    world.beat(5, doing, ranks=[0])
    assert world.pass_by(1790) is None
    assert world.pass_by(20) is not None


def test_the_first_step_may_take_its_time():
    world = World()
    world.beat(0, "start")
    world.pass_by(2)
    world.beat(0)
    assert world.pass_by(1700) is None
    world.beat(1)
    assert world.pass_by(58) is None  # from now on steps are expected, though the first one was slow
    other = World()
    other.train(3, first=40)  # another stage begins at its own step 0
    other.beat(0)
    assert other.pass_by(1700) is None


def test_a_verb_that_never_beats_is_no_hang_unless_it_is_known_to_beat():
    assert World(expected=False).pass_by(10_000) is None
    assert World(expected=True).pass_by(10_000).seconds > 1800


def test_clocks_of_nodes_do_not_matter():
    world = World()
    world.train(3)
    for step in range(4, 60):
        world.beat(step, clock=-3600.0 if step % 2 else 86400.0)
        assert world.pass_by(2) is None
    assert world.pass_by(70) is not None


def test_a_supervisor_that_was_stopped_itself_raises_no_alarm():
    world = World()
    world.train(5)
    world.now += 100_000
    assert world.watch.look(list(world.beats.values())) is None
    world.beat(6)
    assert world.pass_by(58) is None


def test_a_thousand_ranks_beat_seldom_and_that_is_no_hang():
    world = World(ranks=4000, limits=Hang(seconds=60, other_seconds=600))
    world.beat(0, "start")
    world.pass_by(2)
    world.beat(1)
    assert world.watch.interval == 80 and world.pass_by(238) is None
    assert world.pass_by(10) is not None


@given(st.lists(st.tuples(st.floats(0.1, 50), st.sampled_from(["step", "save", "evaluate"])), max_size=60))
def test_no_alarm_while_every_rank_is_within_its_limits(course):
    world = World()
    world.train(2)
    for number, (seconds, doing) in enumerate(course):
        assert world.pass_by(seconds) is None
        world.beat(3 + number, doing)

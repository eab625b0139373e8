"""Storages by hand: what is alive after each of a few operations, and what the fullest moment was made of."""

from __future__ import annotations

import torch

from megavlm.megatron_mm.tracing.follower import Follower
from megavlm.megatron_mm.tracing.places import Places
from megavlm.megatron_mm.tracing.walk import Walk


def test_a_storage_counts_once_from_birth_to_end() -> None:
    follower = Follower()
    with Walk(follower.see):
        rows = torch.zeros(10, 100)
        assert follower.total == 4000
        view = rows[2:5].t()
        assert follower.total == 4000, "views hold nothing of their own"
        half = rows.bfloat16()
        assert follower.total == 6000
        del rows
        assert follower.total == 6000, "the view keeps it"
        del view
        assert follower.total == 2000
        del half
    assert follower.total == 0


def test_what_autograd_keeps_is_alive_until_the_backward_pass() -> None:
    follower = Follower()
    with Walk(follower.see):
        weight = torch.ones(100, 100, requires_grad=True)
        seen = (torch.ones(50, 100) @ weight).exp()
        follower.see(seen)
        assert follower.total == 4 * (10_000 + 5_000 + 5_000), "the input, and exp's result; not what went into exp"
        loss = seen.sum()
        del seen
        assert follower.total == 4 * (10_000 + 5_000 + 5_000 + 1)
        loss.backward()
        del loss
        assert follower.total == 4 * (10_000 + 10_000), "weight and gradient"
        assert weight.grad is not None
    assert follower.kinds["weights"] == 80_000


def test_the_peak_of_a_phase_is_its_fullest_moment_and_knows_its_causes() -> None:
    places = Places()
    follower = Follower(places.now)
    with places.listening(), Walk(follower.see):
        model = torch.nn.Sequential(torch.nn.Linear(8, 64, bias=False), torch.nn.GELU())
        places.know(model)
        follower.begin("schedule")
        rows = torch.ones(16, 8)
        out = model(rows)
        most = follower.total
        del out
        follower.begin("learn")
        follower.close()
    build, schedule, learn = follower.peaks
    assert (build.phase, build.total) == ("build", 4 * 8 * 64)
    assert schedule.total == most == 4 * (8 * 64 + 16 * 8 + 16 * 64 + 16 * 64)
    assert schedule.kinds["weights"] == 4 * 8 * 64 and schedule.kinds["activations"] == most - 4 * 8 * 64
    assert dict(schedule.causes)["*"] == 4 * 16 * 64 * 2, "two layers whose number is a *"
    assert learn.total == 4 * (8 * 64 + 16 * 8)


def test_whole_numbers_stay_real_and_fractions_do_not() -> None:
    with Walk(lambda tensor: None) as walk:
        ends = torch.tensor([0, 3, 10]).diff()
        assert ends.tolist() == [3, 7]
        rows = torch.rand(10, 4)
        assert [len(part) for part in rows.split(ends.tolist())] == [3, 7]
        assert rows[torch.arange(10) > 6].shape == (3, 4), "a mask of real numbers chooses"
        assert float(rows.norm()) == 1.0 and not bool((rows > 0).all())
        assert walk.pixels(2, 3, 8, 8).shape == (2, 3, 8, 8)

"""Which global batch a step learns from when some are left out, against the list without them."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from megavlm.megatron_mm.data.skips import Back, Skips, batch_of, read_skips, step_of, write_skips

RANGES = st.lists(st.tuples(st.integers(0, 40), st.integers(0, 8)).map(lambda pair: (pair[0], sum(pair))), max_size=6)


@given(RANGES)
def test_steps_and_batches(ranges: list[tuple[int, int]]) -> None:
    skips, left_out = Skips(), set()
    for number, (start, stop) in enumerate(ranges):
        skips = skips.and_also(start, stop, Back(number, 0, (0, start, stop)))
        left_out |= set(range(start, stop))
    kept = [batch for batch in range(100) if batch not in left_out]
    assert skips.count == len(left_out)
    assert [batch_of(step, skips) for step in range(len(kept))] == kept
    assert [step_of(batch, skips) for batch in range(100)] == [
        kept.index(batch) if batch in kept else None for batch in range(100)
    ]
    assert list(skips.left_out) == sorted(skips.left_out)
    assert all(before[1] < after[0] for before, after in zip(skips.left_out, skips.left_out[1:], strict=False))


def test_what_an_attempt_did_counts_until_a_later_one_goes_back() -> None:
    skips = Skips(back=(Back(3, 10, (10, 12, 14)), Back(5, 8, (8, 0, 0))))
    told = {(attempt, step): skips.counts(attempt, step) for attempt in (1, 3, 4, 5, 6) for step in (8, 9, 10, 11)}
    assert {key for key, counts in told.items() if not counts} == {
        (1, 9), (1, 10), (1, 11), (3, 9), (3, 10), (3, 11), (4, 9), (4, 10), (4, 11),
    }  # fmt: skip


def test_they_are_read_as_they_were_written(tmp_path) -> None:
    assert read_skips(tmp_path / "stage") == Skips()
    skips = Skips().and_also(4, 6, Back(2, 4, (5, 4, 6)))
    write_skips(tmp_path / "stage", skips)
    assert read_skips(tmp_path / "stage") == skips

"""Loss weights under each normalisation, against the formulas written out sample by sample and turn by turn."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megavlm.megatron_mm.data.assemble import IGNORED, Prepared, assemble, normalised
from megavlm.megatron_mm.data.encoded import Encoded

# a sample: turns of (tokens that are not learnt, tokens that are), as header and answer
samples = st.lists(st.lists(st.tuples(st.integers(1, 3), st.integers(1, 5)), min_size=1, max_size=3), max_size=4)


def packed(turns: list[list[tuple[int, int]]]):
    prepared = []
    for sample in turns:
        target = np.concatenate([np.repeat([False, True], turn) for turn in sample])
        encoded = Encoded(np.arange(len(target)), target, np.zeros(len(target), bool), 0)
        prepared.append(Prepared(encoded, (), 1.0))
    return assemble(prepared, 100, 2, padding=0)


@given(samples)
def test_square_root_of_the_answer_s_length(turns) -> None:
    arrays = normalised(packed(turns), "sqrt_length")
    answers = [n for sample in turns for _, n in sample]
    rng = np.random.default_rng(0).random(100)
    wanted, place = 0.0, 0
    for sample in turns:
        for skipped, n in sample:
            place += skipped
            wanted += np.sqrt(n) * rng[place - 1 : place - 1 + n].mean()  # a label stands one place before its token
            place += n
    assert arrays.loss_weights.sum() == pytest.approx(sum(map(np.sqrt, answers)), rel=1e-5)
    assert (arrays.loss_weights * rng).sum() == pytest.approx(wanted, rel=1e-5)


@given(samples.filter(bool))
def test_every_micro_batch_counts_alike(turns) -> None:
    arrays = normalised(packed(turns), "per_microbatch")
    learnt = arrays.labels != IGNORED
    assert arrays.loss_weights.sum() == pytest.approx(1.0, rel=1e-5)
    assert len(set(arrays.loss_weights[learnt].tolist())) == 1 and not arrays.loss_weights[~learnt].any()


def test_a_pack_of_padding_stays_without_weight() -> None:
    for how in ("global_token", "per_microbatch", "sqrt_length"):
        weights = normalised(packed([]), how).loss_weights
        assert not weights.any() and np.isfinite(weights).all()


def test_every_token_alike_is_what_was_packed() -> None:
    arrays = packed([[(2, 3)], [(1, 4), (2, 2)]])
    assert normalised(arrays, "global_token").loss_weights.tolist() == arrays.loss_weights.tolist()

"""Histograms that are added up in pieces equal numpy's of everything at once."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from megavlm.data_curation.distributions import Histogram, coarser, linear, octaves, whole_numbers

EDGES = [linear(-1, 1, 200), octaves(0, 12, 8), whole_numbers(1000, 6)]
VALUES = st.lists(arrays(np.float64, st.integers(0, 60), elements=st.floats(-2, 5000) | st.just(np.nan)), max_size=5)


@given(pieces=VALUES, edges=st.sampled_from(EDGES))
def test_pieces_add_up_to_numpys_histogram(pieces, edges):
    bins = Histogram(edges)
    for piece in pieces:
        bins.add(piece)
    whole = np.concatenate([np.empty(0), *pieces])
    known = whole[~np.isnan(whole)]
    assert bins.counts.tolist() == np.histogram(known, edges)[0].tolist()
    assert (bins.missing, bins.total + bins.outside) == (len(whole) - len(known), len(known))
    if len(known):
        assert (bins.low, bins.high) == (known.min(), known.max())


@pytest.mark.parametrize("share", [0.0, 0.05, 0.5, 0.95, 1.0])
def test_quantiles_are_numpys_within_a_bin(share):
    values = np.random.default_rng(4).lognormal(5, 1, 4000)
    bins = Histogram(octaves(0, 14, 16))
    bins.add(values)
    near = np.quantile(values, share)
    assert bins.quantile(share) == pytest.approx(near, rel=2 ** (1 / 16) - 1)
    assert np.isnan(Histogram(linear(0, 1, 2)).quantile(share))


@given(rows=arrays(np.int64, (2, 97), elements=st.integers(0, 3)), most=st.integers(1, 100))
def test_coarser_bins_hold_the_same_samples_in_the_same_places(rows, most):
    edges = np.cumsum(np.arange(98.0))
    fewer, counts = coarser(edges, rows, most)
    assert counts.sum(axis=1).tolist() == rows.sum(axis=1).tolist()
    assert counts.shape[1] <= most and len(fewer) == counts.shape[1] + 1
    for row, found in zip(rows, counts, strict=True):
        middles = np.repeat((edges[:-1] + edges[1:]) / 2, row)
        assert np.histogram(middles, fewer)[0].tolist() == found.tolist()


def test_small_whole_numbers_have_a_bin_each_and_large_ones_share():
    edges = whole_numbers(10_000, 8)
    assert edges[:9].tolist() == [0.5, 1.5, 2.5, 3.5, 4.5, 5.5, 6.5, 7.5, 8.5]
    assert edges[-1] <= 10_000.5 and (np.diff(edges) >= 1).all() and len(edges) < 120

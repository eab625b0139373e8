"""Equal files and equal-looking images against brute force."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megavlm.data_curation import duplicates
from megavlm.data_curation.duplicates import equal_earlier, hash_distances, near_earlier
from megavlm.data_curation.hashing import distance, exact_hash, near_pairs, perceptual_hash


def some_hashes(seed: int, n: int) -> np.ndarray:
    """uint8 [n, 32], some near to one another, some equal."""
    rng = np.random.default_rng(seed)
    bases = rng.integers(0, 256, (4, 32), dtype=np.uint8)
    flips = np.packbits(rng.random((n, 256)) < 0.06, axis=1) * (rng.random((n, 1)) < 0.7)
    return bases[rng.integers(0, 4, n)] ^ flips.astype(np.uint8)


@given(st.integers(0, 10**6), st.integers(0, 60), st.integers(0, 40))
@settings(max_examples=40, deadline=None)
def test_hash_pairs_are_those_of_brute_force(seed, n, radius):
    hashes = some_hashes(seed, n)
    pairs, distances = near_pairs(hashes, radius)
    wanted = {(i, j): distance(hashes[i], hashes[j]) for i in range(n) for j in range(i + 1, n)}
    assert {tuple(p): d for p, d in zip(pairs.tolist(), distances.tolist(), strict=True)} == {
        pair: bits for pair, bits in wanted.items() if bits <= radius
    }


@given(st.integers(0, 10**6), st.integers(0, 60), st.integers(0, 40), st.sampled_from([3, 256]))
@settings(max_examples=60, deadline=None)
def test_each_hash_names_the_first_that_it_is_near(seed, n, radius, queries):
    hashes, usable = some_hashes(seed, n), np.random.default_rng(seed).random(n) < 0.8
    old, duplicates.QUERIES = duplicates.QUERIES, queries
    try:
        found = near_earlier(hashes, usable, radius)
    finally:
        duplicates.QUERIES = old
    for j in range(n):
        near = [i for i in range(j) if usable[i] and usable[j] and distance(hashes[i], hashes[j]) <= radius]
        assert found[j] == (near[0] if near else -1)


@given(st.integers(0, 10**6), st.integers(1, 30))
def test_distances_of_pairs(seed, n):
    hashes = some_hashes(seed, n)
    a, b = np.random.default_rng(seed).integers(0, n, (2, 9))
    assert hash_distances(hashes, a, b).tolist() == [distance(hashes[i], hashes[j]) for i, j in zip(a, b, strict=True)]


def test_equal_files_name_the_first():
    digests = [exact_hash(data) for data in (b"a", b"b", b"a", b"a")]
    assert digests[0] == hashlib.sha256(b"a").hexdigest()
    rows = np.array([list(bytes.fromhex(digest)) for digest in digests], np.uint8)
    assert equal_earlier(rows).tolist() == [-1, -1, 0, 0]
    assert equal_earlier(rows[:0]).tolist() == []


def test_the_perceptual_hash_is_facebooks_pdq(tools):
    import pdqhash

    image = np.asarray(tools.photo(1, 256, 192))
    data, quality = perceptual_hash(image)
    bits, wanted = pdqhash.compute(image)
    assert np.array_equal(np.unpackbits(np.frombuffer(data, np.uint8)), bits) and quality == wanted
    half, _ = perceptual_hash(np.asarray(tools.photo(1, 256, 192).resize((128, 96))))
    other, _ = perceptual_hash(np.asarray(tools.photo(2, 256, 192)))
    near, far = (distance(*(np.frombuffer(x, np.uint8) for x in (data, b))) for b in (half, other))
    assert near < 31 < 80 < far


@pytest.mark.parametrize("copies", [2, 5000])
def test_equal_hashes_are_compared_once(copies):
    """Thousands of one icon would otherwise all find each other."""
    found = near_earlier(np.tile(some_hashes(0, 1), (copies, 1)), np.ones(copies, bool), 31)
    assert found.tolist() == [-1] + [0] * (copies - 1)

"""Pairs and who stays, against brute force."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megavlm.data_curation import duplicates
from megavlm.data_curation.hashing import distance, exact_hash, near_pairs, perceptual_hash


def clustered(seed: int, n: int, d: int = 6) -> tuple[np.ndarray, np.ndarray]:
    """Unit rows, many of them close to one another, and a cluster for each."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(5, d))
    rows = centres[rng.integers(0, 5, n)] + 0.1 * rng.normal(size=(n, d))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32), rng.integers(0, 3, n)


@given(st.integers(0, 10**6), st.integers(1, 40), st.sampled_from([2, 7, 4096]))
@settings(max_examples=40, deadline=None)
def test_feature_pairs_are_those_of_brute_force(seed, n, block):
    features, clusters = clustered(seed, n)
    old, duplicates.BLOCK = duplicates.BLOCK, block
    try:
        found = {(i, j): cosine for i, j, cosine in duplicates.feature_pairs(features, clusters, 0.98)}
    finally:
        duplicates.BLOCK = old
    for i in range(n):
        for j in range(i + 1, n):
            cosine = float(features[i].astype(np.float64) @ features[j].astype(np.float64))
            if abs(cosine - 0.98) > 1e-6:
                assert ((i, j) in found) == (clusters[i] == clusters[j] and cosine > 0.98)
            if (i, j) in found:
                assert found[i, j] == pytest.approx(cosine, abs=1e-6)


@given(st.integers(0, 10**6), st.integers(0, 60), st.integers(0, 40))
@settings(max_examples=40, deadline=None)
def test_hash_pairs_are_those_of_brute_force(seed, n, radius):
    rng = np.random.default_rng(seed)
    bases = rng.integers(0, 256, (4, 32), dtype=np.uint8)
    flips = np.packbits(rng.random((n, 256)) < 0.06, axis=1)
    hashes = bases[rng.integers(0, 4, n)] ^ flips
    pairs, distances = near_pairs(hashes, radius)
    wanted = {(i, j): distance(hashes[i], hashes[j]) for i in range(n) for j in range(i + 1, n)}
    assert {tuple(p): d for p, d in zip(pairs.tolist(), distances.tolist(), strict=True)} == {
        pair: bits for pair, bits in wanted.items() if bits <= radius
    }


def test_a_hash_of_low_quality_makes_no_pair():
    hashes = np.zeros((3, 32), np.uint8)
    found = list(duplicates.hash_pairs(hashes, np.array([50, 49, 80]), radius=0, min_quality=50))
    assert found == [(0, 2, 0)]


def semdedup(features: np.ndarray, clusters: np.ndarray, rank: np.ndarray, epsilon: float) -> set[int]:
    """The rule of SemDeDup (arXiv 2303.09540), cluster by cluster: sort, similarities, maximum over earlier ones."""
    dropped = set()
    for cluster in np.unique(clusters):
        members = sorted(np.flatnonzero(clusters == cluster), key=lambda i: rank[i])
        similar = features[members].astype(np.float64) @ features[members].astype(np.float64).T
        worst = np.triu(similar, 1).max(axis=0)
        dropped |= {int(member) for member, m in zip(members, worst, strict=True) if m > 1 - epsilon}
    return dropped


@given(st.integers(0, 10**6), st.integers(2, 50))
@settings(max_examples=60, deadline=None)
def test_who_is_dropped_follows_semdedups_rule(seed, n):
    features, clusters = clustered(seed, n)
    rank = np.random.default_rng(seed + 1).permutation(n)
    pairs = duplicates.Pairs()
    for i, j, cosine in duplicates.feature_pairs(features, clusters, 0.98):
        pairs.add(i, j, "features", cosine=cosine)
    winner = duplicates.earlier_neighbour(pairs.array(), rank)
    assert set(np.flatnonzero(winner >= 0).tolist()) == semdedup(features, clusters, rank, epsilon=0.02)


@given(st.lists(st.tuples(st.integers(0, 19), st.integers(0, 19)), max_size=40), st.integers(0, 1000))
def test_every_chain_keeps_its_first_and_each_dropped_one_names_an_earlier(edges, seed):
    pairs = np.array([(a, b) for a, b in edges if a != b], dtype=np.int64).reshape(-1, 2)
    rank = np.random.default_rng(seed).permutation(20)
    winner = duplicates.earlier_neighbour(pairs, rank)
    linked = {frozenset(pair) for pair in pairs.tolist()}
    for image, other in enumerate(winner.tolist()):
        if other >= 0:
            assert rank[other] < rank[image] and frozenset((image, other)) in linked
    group = list(range(20))
    for _ in range(20):
        for a, b in pairs.tolist():
            group[a] = group[b] = min(group[a], group[b])
    for root in set(group):
        members = [i for i in range(20) if group[i] == root]
        assert winner[min(members, key=lambda i: rank[i])] == -1


def test_equal_files_pair_with_the_first():
    digests = [exact_hash(data) for data in (b"a", b"b", b"a", b"a")]
    assert digests[0] == hashlib.sha256(b"a").hexdigest()
    assert list(duplicates.exact_pairs(digests)) == [(0, 2), (0, 3)]


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

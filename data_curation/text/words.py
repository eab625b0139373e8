"""Words and n-grams as numbers: what decontamination and exact duplicates compare."""

from __future__ import annotations

import functools
import hashlib
import re
import unicodedata
from collections.abc import Sequence

import numpy as np

PUNCTUATION = re.compile(r"[^\w\s]|_")
# Any odd number does that mixes well; this one is 2^64 divided by the golden ratio (Knuth's multiplicative hashing).
MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)


def words_of(text: str) -> list[str]:
    """The words of a text: lower case, separated by white space, without punctuation.

    That is the definition of GPT-3, appendix C (arXiv 2005.14165). Punctuation is everything but letters, digits and
    white space, and is removed, not turned into a space; what Unicode calls compatible (NFKC) is one character.
    """
    return PUNCTUATION.sub("", unicodedata.normalize("NFKC", text).lower()).split()


def word_hashes(words: Sequence[str]) -> np.ndarray:
    """64 bits of each word's BLAKE2b, uint64 [words]: the same on every machine and in every process."""
    return np.fromiter(map(_cached_hash, words), np.uint64, len(words))


def _word_hash(word: str) -> int:
    return int.from_bytes(hashlib.blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


_cached_hash = functools.lru_cache(maxsize=1 << 18)(_word_hash)  # a text's words are few, and come again


def gram_hashes(hashes: np.ndarray, n: int) -> np.ndarray:
    """A hash of each run of n words, uint64 [words - n + 1] from their hashes uint64 [words]; none where n is greater.

    A polynomial in the words' hashes modulo 2^64. Two different runs share a hash about once in 2^64.
    """
    count = max(0, len(hashes) - n + 1)
    total = np.zeros(count, np.uint64)
    for offset in range(n):
        total = total * MULTIPLIER + hashes[offset : offset + count]
    return total


def digest(parts: Sequence[str]) -> int:
    """64 bits that texts share whose words are the same, part by part."""
    return _word_hash("\0".join(" ".join(words_of(part)) for part in parts))

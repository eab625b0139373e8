"""How much of a text repeats itself, counted as Gopher does (Rae et al. 2021, arXiv 2112.11446, appendix A.1.1).

All fractions are of characters, and words are joined by nothing: only their own characters count.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

Gram = tuple[str, ...]


def top_gram(words: Sequence[str], n: int, least: int = 2) -> tuple[Gram, int, float]:
    """(the n-gram that covers most, how often it occurs, the fraction of the characters that its occurrences have).

    Only n-grams with `least` occurrences that do not overlap: "no no no" holds "no no" once. ((), 0, 0.0) without any.
    """
    often = {gram: count for gram, count in _counts(words, n).items() if count >= least}
    if not often:
        return (), 0, 0.0
    gram = max(often, key=lambda gram: often[gram] * _letters(gram))
    return gram, often[gram], often[gram] * _letters(gram) / _letters(words)


def repeated_grams(words: Sequence[str], n: int) -> float:
    """The fraction of the characters in words that some n-gram covers which occurred before.

    Read from the left; a repeated n-gram counts whole and the search goes on behind it, so no word counts twice.
    """
    total, seen, at, covered = sum(map(len, words)), set[Gram](), 0, 0
    while at + n <= len(words):
        gram = tuple(words[at : at + n])
        if gram in seen:
            covered += _letters(gram)
            at += n
        else:
            seen.add(gram)
            at += 1
    return covered / total if total else 0.0


def repeated_lines(lines: Sequence[str]) -> tuple[float, float]:
    """(fraction of the lines, fraction of the characters) in lines that occurred before."""
    again = [line for number, line in enumerate(lines) if line in set(lines[:number])]
    letters = sum(map(len, lines))
    return (len(again) / len(lines), sum(map(len, again)) / letters) if letters else (0.0, 0.0)


def _counts(words: Sequence[str], n: int) -> Counter[Gram]:
    """How often each n-gram occurs, read from the left, an occurrence beginning where the one before has ended."""
    counts, free = Counter[Gram](), dict[Gram, int]()
    for at in range(len(words) - n + 1):
        gram = tuple(words[at : at + n])
        if at >= free.get(gram, 0):
            counts[gram] += 1
            free[gram] = at + n
    return counts


def _letters(gram: Sequence[str]) -> int:
    return sum(map(len, gram))

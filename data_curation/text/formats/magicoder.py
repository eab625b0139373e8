"""Magicoder (arXiv 2312.02120): code tasks grown from open-source snippets.

Magicoder-OSS-Instruct-75K: {"lang", "raw_index", "index", "seed", "openai_fingerprint", "problem", "solution"}.
Magicoder-Evol-Instruct-110K: {"instruction", "response"}.
"""

from __future__ import annotations

from ..sample import Row, TextSample, exchange, text_of


def convert(row: Row) -> TextSample:
    """The row's sample, `id` its `raw_index` and `source` its `lang` where it has them; raises BadRow."""
    question, answer = ("problem", "solution") if "problem" in row else ("instruction", "response")
    id, source = row.get("raw_index"), row.get("lang") or ""
    return exchange(text_of(row, question), text_of(row, answer), id=id, source=source)

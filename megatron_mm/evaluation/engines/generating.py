"""Greedy answers of a transformers model, each ended by its own stops and length."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import StoppingCriteria, StoppingCriteriaList

from .base import Ask

Decode = Callable[[Sequence[int]], str]


def padded(prompts: Sequence[Sequence[int]], padding: int, left: bool) -> dict[str, Tensor]:
    """Token ids as int64 `input_ids` and `attention_mask` [rows, longest], filled up on one side."""
    width = max(map(len, prompts))
    ids, mask = torch.full((len(prompts), width), padding), torch.zeros(len(prompts), width, dtype=torch.int64)
    for row, prompt in enumerate(prompts):
        place = slice(width - len(prompt), width) if left else slice(len(prompt))
        ids[row, place], mask[row, place] = torch.tensor(prompt), 1
    return {"input_ids": ids, "attention_mask": mask}


def answers(
    model: Any, inputs: dict[str, Tensor], asks: Sequence[Ask], decode: Decode, ends: Collection[int], padding: int
) -> list[str]:
    """The answers to prompts that stand at the right of `inputs`, one for each of `asks`; `ends` are token ids."""
    width = inputs["input_ids"].shape[1]
    with torch.no_grad():
        said = model.generate(
            **inputs,
            do_sample=False,
            num_beams=1,
            repetition_penalty=1.0,  # some folders set another, which is not the model's own likeliest answer
            max_new_tokens=max(ask.max_new_tokens for ask in asks),
            stopping_criteria=StoppingCriteriaList([_Enough(asks, width, decode)]),
            eos_token_id=sorted(ends),
            pad_token_id=padding,
        )
    rows = zip(said[:, width:].tolist(), asks, strict=True)
    return [cut(decode(until(row[: ask.max_new_tokens], ends)), ask.stop) for row, ask in rows]


def until(ids: Sequence[int], ends: Collection[int]) -> list[int]:
    """The ids before the first of `ends`."""
    return list(ids[: next((place for place, token in enumerate(ids) if token in ends), len(ids))])


def cut(text: str, stops: Sequence[str]) -> str:
    """The text before the first of `stops`."""
    places = [place for stop in stops if (place := text.find(stop)) >= 0]
    return text[: min(places, default=len(text))]


class _Enough(StoppingCriteria):
    """Which rows said all they may: a stop of their own, or as many tokens."""

    def __init__(self, asks: Sequence[Ask], width: int, decode: Decode) -> None:
        self._asks, self._width, self._decode = asks, width, decode

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        """int64 [rows, so far] -> bool [rows]."""
        rows = zip(input_ids[:, self._width :].tolist(), self._asks, strict=True)
        return torch.tensor([self._enough(row, ask) for row, ask in rows], device=input_ids.device)

    def _enough(self, ids: list[int], ask: Ask) -> bool:
        if len(ids) >= ask.max_new_tokens:
            return True
        text = self._decode(ids) if ask.stop else ""
        return any(stop in text for stop in ask.stop)

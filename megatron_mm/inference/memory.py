"""Keys and values of a batch of prompts: megatron-core's memory, with prompts of different lengths in it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from megatron.core.inference.contexts import StaticInferenceContext
from torch import Tensor

from ..backend import device
from ..decoders.model import DecoderModel


class Memory(StaticInferenceContext):
    """The one inference context of a batch. Layers of other kinds may keep here what they computed, for one prompt.

    Prompts are aligned at their ends, so that all write their next token into the same slot: one of n tokens stands in
    the slots `width - n` to `width`, and the slots before it are hidden. Rotary angles tell distances only, so where a
    prompt begins makes no difference to what it says.
    """

    def __init__(self, decoder: DecoderModel, lengths: Sequence[int], new_tokens: int) -> None:
        self.width = max(lengths)
        super().__init__(max_batch_size=len(lengths), max_sequence_length=self.width + new_tokens)
        self._before = torch.tensor([self.width - length for length in lengths], device=device())
        for layer in decoder.layers:
            self._allocate(cast(Any, layer).self_attention)

    def _allocate(self, attention: Any) -> None:
        """megatron-core would, but leaves what happens to lie there: a hidden NaN, times a weight of 0, is NaN."""
        groups, dtype = attention.num_query_groups_per_partition, attention.config.params_dtype
        shape = (self.max_sequence_length, self.max_batch_size, groups)
        self.key_value_memory_dict[attention.layer_number] = tuple(
            torch.zeros(*shape, size, dtype=dtype, device=device())
            for size in (attention.key_hidden_size, attention.val_hidden_size)
        )

    def at_prompt(self, row: int) -> None:
        """Be ready for the prompt of `row`, all of it at once."""
        self.enable_prefill_mode()
        self.batch_size_offset, self.sequence_len_offset = row, int(self._before[row])

    def at_token(self, number: int) -> None:
        """Be ready for the tokens that every row said `number`th, from 0."""
        self.enable_decode_mode()
        self.batch_size_offset, self.sequence_len_offset = 0, self.width + number

    def hidden(self, new: int) -> Tensor | None:
        """Bool [rows, 1, 1, keys], True where a slot is no row's to see, once `new` tokens are written; None for none.

        The rows are all there are, or the one whose prompt it is.
        """
        rows = self._before if self.is_decode_only() else self._before[self.batch_size_offset][None]
        if not rows.any():
            return None
        slots = torch.arange(self.sequence_len_offset + new, device=rows.device)
        return (slots < rows[:, None])[:, None, None]

    def keep(self, rows: Sequence[int]) -> None:
        """Forget the others; the rows are numbered anew."""
        kept = torch.tensor(rows, device=self._before.device)
        self._before = self._before[kept]
        for place, memory in self.key_value_memory_dict.items():
            self.key_value_memory_dict[place] = tuple(values[:, kept] for values in memory)

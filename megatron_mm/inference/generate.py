"""KV-cached generation: each prompt, images included, goes through once; after it all say one token at a time."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from megavlm.platform.errors import InputError

from ..contracts import PackedBatch
from ..model import VisionLanguageModel
from .likely import Likely, read_rows, rows_of
from .memory import Memory
from .passing import check_layout_of, forward, only_stage, told
from .prompt import next_tokens
from .sampling import Sampling, choose


@dataclass(frozen=True)
class Ask:
    """A prompt of one sample (`prompt.encode_prompt`) and how to go on from it.

    `top` likeliest tokens are told beside each one said.
    """

    prompt: PackedBatch
    stop: frozenset[int] = frozenset()
    max_new_tokens: int = 64
    sampling: Sampling = field(default_factory=Sampling)
    top: int = 0


@dataclass(frozen=True)
class Said:
    """The next token of the ask number `row`, and whether it is the last one."""

    row: int
    likely: Likely
    last: bool

    @property
    def token(self) -> int:
        """Its id."""
        return self.likely.token


class Batch:
    """Several asks answered side by side, each as if it were alone; `open` are those that still say something.

    All ranks of a model make the same batch and call the same methods, and are told the same. The draws of an ask come
    from its own seed. What it is told is what it gets alone up to the rounding of batched matrix products: in fp32 the
    same tokens, in bfloat16 near ties may fall the other way. A prompt with tiles beside its sequence (NVLM-X, -H)
    needs a batch of its own (`batches`).
    """

    def __init__(self, model: VisionLanguageModel, asks: Sequence[Ask]) -> None:
        """Raises ConfigError for a layout that cannot generate, InputError for a prompt that is too long."""
        check_layout_of(model)
        self._model, self._asks = model.eval(), asks
        positions = model.spec.decoder.max_positions
        self._limits = [min(ask.max_new_tokens, room(ask.prompt.length, positions)) for ask in asks]
        lengths = [ask.prompt.length for ask in asks]
        self._memory = Memory(only_stage(model).decoder, lengths, max(self._limits))
        self._rngs = [torch.Generator().manual_seed(ask.sampling.seed) for ask in asks]
        self._top = max(ask.top for ask in asks)
        self._said: list[int] = []  # the last token of each open ask
        self._count = 0
        self.open = list(range(len(asks)))

    def step(self) -> list[Said]:
        """The next token of every open ask."""
        likely = self._choose(self._next() if self._count else self._prompts())
        self._said, self._count = [each.token for each in likely], self._count + 1
        said = [Said(row, each, self._ends(row, each.token)) for row, each in zip(self.open, likely, strict=True)]
        self.drop([each.row for each in said if each.last])
        return said

    def drop(self, rows: Collection[int]) -> None:
        """Say no more for these asks."""
        kept = [place for place, row in enumerate(self.open) if row not in rows]
        if kept and len(kept) < len(self.open):
            self._memory.keep(kept)
        self.open = [self.open[place] for place in kept]
        self._said = [self._said[place] for place in kept]

    def _ends(self, row: int, token: int) -> bool:
        return token in self._asks[row].stop or self._count == self._limits[row]

    def _prompts(self) -> Tensor | None:
        """Logits [rows, vocab] after each prompt; None before the last pipeline stage."""
        found = []
        for row, ask in enumerate(self._asks):
            self._memory.at_prompt(row)
            found.append(self._logits(ask.prompt))
        return None if found[0] is None else torch.cat([logits for logits in found if logits is not None])

    def _next(self) -> Tensor | None:
        """The same after the tokens said last."""
        self._memory.at_token(self._count - 1)
        like = self._asks[self.open[0]].prompt
        return self._logits(next_tokens(self._said, self._memory.sequence_len_offset, like))

    def _logits(self, batch: PackedBatch) -> Tensor | None:
        hidden = self._memory.hidden(batch.length)
        logits = forward(self._model, batch, hidden, gather_logits=True, inference_context=self._memory)
        # without the padding of the vocabulary, which differs between layouts: noise would be drawn for it too
        return None if logits is None else logits[:, -1, : self._model.spec.decoder.vocab]

    def _choose(self, logits: Tensor | None) -> list[Likely]:
        """The last pipeline stage draws, and tells the others."""
        rows = None
        if logits is not None:
            each = zip(logits, self.open, strict=True)
            tokens = [choose(row, self._asks[ask].sampling, self._rngs[ask]) for row, ask in each]
            rows = rows_of(logits, torch.tensor(tokens, device=logits.device), self._top)
        found = read_rows(told(rows, (len(self.open), 2 + 2 * self._top)))
        return [each.best(self._asks[ask].top) for each, ask in zip(found, self.open, strict=True)]


def room(length: int, positions: int) -> int:
    """How many tokens may follow a prompt of `length`; raises InputError when none may."""
    if length >= positions:
        raise InputError(
            f"the prompt has {length} tokens and the decoder {positions} positions",
            fix="shorten it, or use fewer tiles",
        )
    return positions - length


def batches(asks: Sequence[Ask], most: int) -> list[list[int]]:
    """Numbers of the asks that may share a batch of at most `most`, in order; those with tiles beside are alone."""
    found: list[list[int]] = []
    shared = False
    for number, ask in enumerate(asks):
        alone = ask.prompt.context is not None and len(ask.prompt.context.tiles) > 0
        if shared and not alone and len(found[-1]) < most:
            found[-1].append(number)
        else:
            found.append([number])
        shared = not alone
    return found


def generate(
    model: VisionLanguageModel,
    prompt: PackedBatch,
    *,
    stop: Collection[int],
    max_new_tokens: int = 64,
    sampling: Sampling = Sampling(),  # noqa: B008 - frozen
) -> Iterator[int]:
    """One prompt's answer: token ids one by one, up to and including the first of `stop`. See Batch."""
    batch = Batch(model, [Ask(prompt, frozenset(stop), max_new_tokens, sampling)])
    while batch.open:
        yield from (said.token for said in batch.step())

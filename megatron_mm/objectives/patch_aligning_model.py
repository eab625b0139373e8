"""Patch aligning's own weights, each beside the layer that it taps, and how what is tapped comes to the last stage.

What is kept of a hidden state is its projection at the image's places. That rides through the layers as their
`context`, so that it is an output of recomputed layers too, and on to the next pipeline stage as rows behind
the hidden states.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from megatron.core.tensor_parallel import gather_from_sequence_parallel_region
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..contracts import BuildContext, PackedBatch
from .cells import Cells
from .loss import Loss

if TYPE_CHECKING:
    from megatron.core.models.gpt import GPTModel

    from ..config import ModelConfig
    from .patch_aligning import PatchAligning


class Taps(nn.Module):
    """One pipeline stage's part: a norm and a projection for each tapped hidden state that the stage makes.

    Parameters: norms.K and taps.K of hidden state K; input and output on the last stage.
    """

    def __init__(self, spec: PatchAligning, ctx: BuildContext, model: ModelConfig, decoder: GPTModel) -> None:
        super().__init__()
        self.spec, self.cells, self._hidden = spec, Cells(spec, model), model.decoder.hidden
        self._order = spec.taps(model.decoder.layers)
        self._dtype, self._sequence_parallel = ctx.params_dtype, ctx.parallel.sequence_parallel
        layers = {layer.layer_number - 1: layer for layer in decoder.layers}
        self._first = min(layers)
        own = [k for k in self._order if k in layers] + ([model.decoder.layers] if ctx.post_process else [])
        wide, width, dtype = model.decoder.hidden, spec.width, ctx.params_dtype
        self.norms = nn.ModuleDict({str(k): nn.LayerNorm(wide, dtype=dtype) for k in own})
        self.taps = nn.ModuleDict({str(k): nn.Linear(wide, width, bias=False, dtype=dtype) for k in own})
        if ctx.post_process:
            self.input = nn.Linear(wide, width, dtype=dtype)
            self.output = nn.Linear(width, width, dtype=dtype)
        self._length = 0
        self._carried = self._last = torch.empty(0)
        self._hook(decoder, layers, is_last=ctx.post_process)

    def carried_rows(self, length: int) -> int:
        """Rows that go to the next stage behind the hidden states of a pack of so many positions."""
        return math.ceil((len(self._order) - 1) * self.cells.most(length) * self.spec.width / self._hidden)

    def begin(self, received: Tensor | None, rows: int, batch: PackedBatch) -> tuple[Tensor | None, Tensor]:
        """What came from the stage before, `rows` of it hidden states -> those, and what was tapped [k, p, width].

        None on the first stage, where nothing was.
        """
        self._length = rows
        count = sum(self.cells.counts(batch))
        if received is None:
            return None, torch.zeros(0, count, self.spec.width, dtype=self._dtype, device=batch.tokens.device)
        before = sum(k < self._first for k in self._order)
        hidden, carried = received[:rows], received[rows:].reshape(-1)
        return hidden, carried[: before * count * self.spec.width].view(before, count, self.spec.width)

    def mismatch(self, taught: Tensor, batch: PackedBatch) -> Tensor:
        """The teacher's features [p, width] -> float32 [p]: 1 - cosine, after the decoder went through the pack."""
        last, before = self._last, self._answers(len(taught))
        self._carried = self._last = torch.empty(0)
        found = _again(self._found, last, before, self.cells.rows(batch))
        return mismatch(found, taught, self.spec.form)

    def _found(self, hidden: Tensor, before: Tensor, rows: Tensor) -> Tensor:
        """The last norm's output [s, 1, h], and what was tapped before it -> [features, width]."""
        last = self._at_cells(hidden, rows)
        asked = self._projected(self._order[-1], last)
        return self.output(_attention(asked, before, self.spec.heads)) + self.input(last)

    def _answers(self, count: int) -> Tensor:
        before = len(self._order) - 1
        return self._carried.reshape(-1)[: before * count * self.spec.width].view(before, count, self.spec.width)

    def tap(self, k: int, hidden: Tensor, rows: Tensor) -> Tensor:
        """Hidden state k [s, 1, h] -> what is read of it at these rows, [features, width]."""
        return _again(lambda states: self._projected(k, self._at_cells(states, rows)), hidden)

    def _projected(self, k: int, hidden: Tensor) -> Tensor:
        return self.taps[str(k)](self.norms[str(k)](hidden))

    def _at_cells(self, hidden: Tensor, rows: Tensor) -> Tensor:
        """[s, 1, h] -> [features, h]: the mean over the places of each."""
        if self._sequence_parallel:
            hidden = gather_from_sequence_parallel_region(hidden, tensor_parallel_output_grad=False)
        picked = hidden[:, 0].index_select(0, rows.flatten())
        return picked.view(*rows.shape, picked.shape[-1]).mean(1)

    def _hook(self, decoder: GPTModel, layers: dict[int, Any], is_last: bool) -> None:
        for k, layer in layers.items():
            if str(k) in self.taps:
                layer.register_forward_pre_hook(_Tap(self, k), with_kwargs=True)
        layers[max(layers)].register_forward_hook(_Fold(self, is_last), with_kwargs=True)
        if is_last:
            decoder.decoder.final_layernorm.register_forward_pre_hook(self._split)
            decoder.decoder.final_layernorm.register_forward_hook(self._keep)

    def _split(self, norm: Any, args: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        (hidden,) = args
        if not self.training:
            return None
        self._carried = hidden[self._length :]
        return (hidden[: self._length],)

    def _keep(self, norm: Any, args: Any, output: Tensor) -> None:
        if self.training:
            self._last = output


class _Tap:
    """Before a layer: what goes into it is read at the pack's cells, and put behind what earlier layers left."""

    def __init__(self, taps: Taps, k: int) -> None:
        self._taps, self._k = taps, k

    def __call__(self, layer: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]] | None:
        cells = getattr(kwargs.get("packed_seq_params"), "cells", None)
        if cells is None:
            return None
        found = self._taps.tap(self._k, kwargs["hidden_states"], cells)
        return args, kwargs | {"context": torch.cat([kwargs["context"], found[None]])}


class _Fold:
    """After a stage's last layer: what was tapped as rows of the hidden states' width, behind them.

    Stages send each other tensors of one shape, so there are always as many as a pack can need. The last stage sends
    nothing, and gets along with what there is.
    """

    def __init__(self, taps: Taps, is_last: bool) -> None:
        self._taps, self._is_last = taps, is_last

    def __call__(self, layer: Any, args: Any, kwargs: dict[str, Any], output: tuple[Tensor, Any]) -> Any:
        params: Any = kwargs.get("packed_seq_params")
        if getattr(params, "cells", None) is None:
            return None
        (hidden, context), wide = output, self._taps._hidden
        flat = context.reshape(-1)
        rows = -(-len(flat) // wide) if self._is_last else self._taps.carried_rows(int(params.cu_seqlens_q[-1]))
        behind = F.pad(flat, (0, rows * wide - len(flat))).view(rows, 1, wide)
        return torch.cat([hidden, behind]), None


class PatchAligningLoss(Loss):
    """The mean over each image's cells, and of those the mean over images."""

    name, reads = "patch_aligning", "mismatch"

    def __init__(self, spec: PatchAligning, model: ModelConfig) -> None:
        self.factor, self._cells = spec.weight, Cells(spec, model)

    def total(self, values: Tensor, batch: PackedBatch) -> Tensor:
        """float32 [cells] -> the sum over images of their means."""
        counts = torch.tensor(self._cells.counts(batch), dtype=torch.int64, device=values.device)
        return (values / counts.repeat_interleave(counts)).sum()

    def weight(self, batch: PackedBatch) -> Tensor:
        """How many images there are."""
        return torch.tensor(float(len(self._cells.sizes(batch))))


def _again(work: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """`work`, computed once more in the backward pass: layers keep its inputs anyway, and nothing else is kept."""
    return checkpoint(work, *inputs, use_reentrant=False, preserve_rng_state=False)


def mismatch(found: Tensor, taught: Tensor, form: str) -> Tensor:
    """Features [p, d] against the teacher's [p, d], all in float32 -> [p].

    `mse` is half of the squared distance of the normalised vectors: the same number by another way.
    """
    a, b = F.normalize(found.float(), dim=-1), F.normalize(taught.float(), dim=-1)
    return 1 - (a * b).sum(-1) if form == "cosine" else (a - b).square().sum(-1) / 2


def _attention(asked: Tensor, answers: Tensor, heads: int) -> Tensor:
    """At each place by itself: [p, d] over [k, p, d] -> [p, d]. Scaled by all heads' width, as published."""
    k, p, d = answers.shape
    split = answers.view(k, p, heads, d // heads)
    scores = torch.einsum("phd,kphd->kph", asked.view(p, heads, d // heads), split) * d**-0.5
    weights = scores.float().softmax(0).to(split.dtype)
    return torch.einsum("kph,kphd->phd", weights, split).reshape(p, d)

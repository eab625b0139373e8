"""KV-cached generation: the prompt, images included, goes through once; after it one token at a time."""

from __future__ import annotations

from collections.abc import Collection, Iterator

import torch
from megatron.core import parallel_state
from megatron.core.inference.contexts import StaticInferenceContext
from torch import Tensor

from megavlm.platform.errors import ConfigError, InputError

from ..backend import device
from ..contracts import PackedBatch
from ..model import VisionLanguageModel
from .prompt import next_token
from .sampling import Sampling, choose


def generate(
    model: VisionLanguageModel,
    prompt: PackedBatch,
    *,
    stop: Collection[int],
    max_new_tokens: int = 64,
    sampling: Sampling = Sampling(),  # noqa: B008 - frozen
) -> Iterator[int]:
    """Token ids one by one, up to and including the first of `stop`.

    `prompt` is one sample (`prompt.encode_prompt`). All tensor-parallel ranks call this together and get the same
    tokens: they choose from the same gathered logits with the same random numbers. Ends early where the decoder has no
    more positions. Raises ConfigError under pipeline or sequence parallelism, InputError for a prompt that is too long.
    """
    _check(model)
    length = prompt.tokens.shape[1]
    room = model.spec.decoder.max_positions - length
    if room < 1:
        raise InputError(
            f"the prompt has {length} tokens and the decoder {length + room} positions",
            fix="shorten it, or use fewer tiles",
        )
    rng = torch.Generator().manual_seed(sampling.seed)
    decode = _Decoder(model, prompt, length + min(max_new_tokens, room))
    logits = decode.prompt()
    for count in range(min(max_new_tokens, room)):
        token = choose(logits, sampling, rng)
        yield token
        if token in stop or count + 1 == min(max_new_tokens, room):
            return
        logits = decode.token(token)


class _Decoder:
    """One sample's way through the model with its KV cache; every call gives the logits [vocab] of the next token."""

    def __init__(self, model: VisionLanguageModel, prompt: PackedBatch, capacity: int) -> None:
        self._model, self._prompt = model.eval(), prompt.to(device())
        self._context = StaticInferenceContext(max_batch_size=1, max_sequence_length=capacity)

    def prompt(self) -> Tensor:
        return self._forward(self._prompt)

    def token(self, token: int) -> Tensor:
        self._context.enable_decode_mode()
        return self._forward(next_token(token, self._context.sequence_len_offset, self._prompt))

    @torch.no_grad()
    def _forward(self, batch: PackedBatch) -> Tensor:
        logits = self._model(batch, gather_logits=True, inference_context=self._context)
        self._context.sequence_len_offset += batch.tokens.shape[1]
        return logits[0, -1]


def _check(model: VisionLanguageModel) -> None:
    if parallel_state.get_pipeline_model_parallel_world_size() > 1:
        raise ConfigError(
            "generation runs on one pipeline stage", where="parallel.pp", fix="load the checkpoint with parallel.pp=1"
        )
    if model.config.context_parallel_size > 1:
        raise ConfigError(
            "generation does not split the context", where="parallel.cp", fix="load the checkpoint with parallel.cp=1"
        )
    if model.config.sequence_parallel:
        # One token cannot be split, and megatron-core takes each rank's last token for the sequence's.
        raise ConfigError(
            "generation does not split the sequence",
            where="parallel.sequence_parallel",
            fix="load the checkpoint with parallel.sequence_parallel=false",
        )

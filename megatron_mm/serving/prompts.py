"""What a request asks of the model: messages as the stage was trained on them, or a plain text."""

from __future__ import annotations

import secrets
from dataclasses import dataclass

from megavlm.platform.errors import InputError, MegaVLMError

from ..data.build import StageData
from ..data.measure import template
from ..inference.generate import Ask, room
from ..inference.prompt import encode_prompt
from ..inference.sampling import Sampling
from ..inference.score import check_text, text_pack
from ..model import VisionLanguageModel
from .asked import Asked, ChatAsked, CompletionAsked, allowed
from .engine import Generation, Scoring
from .limits import Limits, Refused
from .messages import check_images, read_messages


@dataclass(frozen=True)
class Choice:
    """One choice of a completion: its prompt's text and tokens, and the work that it takes."""

    text: str
    ids: list[int]
    scoring: Scoring | None
    generation: Generation | None


class Prompts:
    """Turns requests into work, with the stage's own tokenizer, template and tiles; raises Refused."""

    def __init__(self, spec: StageData, model: VisionLanguageModel, limits: Limits) -> None:
        self._spec, self._model, self._limits, self.tokenizer = spec, model, limits, spec.tokenizer()
        self._stop = frozenset({template(spec.model, self.tokenizer, spec.data.template).stop})

    def chat(self, asked: ChatAsked) -> Generation:
        """The conversation, images included, ending with an open assistant turn."""
        new = asked.new_tokens(self._limits)
        messages, images = read_messages(asked.messages)
        check_images(images, self._limits)
        try:
            prompt = encode_prompt(messages, images, self.tokenizer, self._spec.model, self._spec.data)
            room(prompt.length, self._model.spec.decoder.max_positions)
        except InputError as error:
            code = f"image_{error.reason}" if hasattr(error, "reason") else None
            raise Refused(400, error.what, code=code, param="messages") from None
        ask = Ask(prompt, self._stop, new, _sampling(asked), asked.top_logprobs)
        return Generation(ask, asked.stops)

    def completion(self, asked: CompletionAsked) -> list[Choice]:
        """A choice for each prompt."""
        if not asked.prompts or len(asked.prompts) > self._limits.waiting:
            raise Refused(400, f"from 1 to {self._limits.waiting} prompts in a request", param="prompt")
        allowed(asked.max_tokens, self._limits)
        if asked.max_tokens == 0 and not asked.echo:
            raise Refused(400, "max_tokens 0 without echo asks for nothing", param="max_tokens")
        return [self._choice(prompt, asked) for prompt in asked.prompts]

    def _choice(self, prompt: str | list[int], asked: CompletionAsked) -> Choice:
        ids = self.tokenizer.encode(prompt) if isinstance(prompt, str) else prompt
        decoder, score = self._model.spec.decoder, asked.echo and asked.logprobs is not None
        try:
            check_text(ids, decoder.max_positions, min(decoder.vocab, self.tokenizer.vocab_size))
            if asked.max_tokens:
                room(len(ids), decoder.max_positions)
        except MegaVLMError as error:
            raise Refused(400, error.what, param="prompt") from None
        text = prompt if isinstance(prompt, str) else self.tokenizer.show(ids)
        scoring = Scoring(tuple(ids), asked.logprobs or 0) if score else None
        return Choice(text, ids, scoring, self._generation(ids, asked) if asked.max_tokens else None)

    def _generation(self, ids: list[int], asked: CompletionAsked) -> Generation:
        pack = text_pack([ids], self._model)
        ask = Ask(pack, self._stop, asked.max_tokens, _sampling(asked), asked.logprobs or 0)
        return Generation(ask, asked.stops)


def _sampling(asked: Asked) -> Sampling:
    """A request without a seed gets one that nobody can guess."""
    seed = secrets.randbits(63) if asked.seed is None else asked.seed
    return Sampling(asked.temperature, asked.top_p, seed)

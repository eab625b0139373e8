"""An lm-eval model over any engine. Imports lm-eval: only what `require` let through may load it."""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from megavlm.platform.errors import ConfigError, InputError

from ...data.samples import Message
from ..engines.base import Ask, Engine, Unanswered

T = TypeVar("T")
READ, ANSWERED = 256, 64  # requests that an engine is given at a time
NEW_TOKENS = 256  # where a task does not say, as lm-eval's own models have it
FAILED = (-1e6, False)  # of a choice that could not be read; finite, for lm-eval divides by lengths
KNOWN = {"until", "do_sample", "temperature", "top_p", "top_k", "max_gen_toks"}

Pair = tuple[list[int], list[int]]


class EngineLM(TemplateLM):
    """What lm-eval asks, asked of an engine.

    `chat`: contexts are conversations. They are handed over as JSON and encoded by the engine, turn by turn: written
    out as one text, what a question says could close a turn. `alive` is called before every batch. `problems`: what
    could not be asked, by task and document, with its reason.
    """

    def __init__(self, engine: Engine, chat: bool = False, alive: Callable[[], object] = lambda: None) -> None:
        super().__init__()
        self._engine, self._chat, self._alive = engine, chat, alive
        self._encode_turns = functools.lru_cache(64)(self._turns)
        self.problems: dict[tuple[str, int], str] = {}

    @property
    def eot_token_id(self) -> int:
        """What a text stands after that has nothing before it."""
        return self._engine.prefix

    @property
    def tokenizer_name(self) -> str:
        """Part of a cache's key; nothing is cached."""
        return self._engine.name

    def chat_template(self, chat_template: bool | str = False) -> str:
        """The engine's own."""
        return ""

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The turns as JSON; a last turn of the assistant's is the beginning of its answer."""
        return json.dumps(chat_history)

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Plain text, with what the tokenizer puts before one unless told otherwise."""
        before = self._engine.start if add_special_tokens is not False else ()
        return [*before, *self._engine.encode(string)]

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """See lm-eval's LM."""
        pairs: dict[int, Pair] = {}
        for number, request in enumerate(requests):
            with self._noting(request):
                pairs[number] = self._pair(*request.args)
        found = self._scored(pairs)
        return [found.get(number, FAILED) for number in range(len(requests))]

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """See lm-eval's LM: every token once, in windows that are as long as the model reads."""
        pairs: dict[tuple[int, int], Pair] = {}
        for number, request in enumerate(requests):
            ids = self.tok_encode(request.args[0], add_special_tokens=False)
            windows = get_rolling_token_windows(ids, self.prefix_token_id, self._engine.max_length, 1)
            pairs |= {(number, place): make_disjoint_window(each) for place, each in enumerate(windows)}
        totals = [0.0] * len(requests)
        for (number, _), (logprob, _) in self._scored(pairs).items():
            totals[number] += logprob
        return totals

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """See lm-eval's LM. Greedy only: raises ConfigError for a task that samples."""
        asks = {number: self._ask(request) for number, request in enumerate(requests)}
        found: dict[int, str] = {}
        for numbers in self._chunks(sorted(asks, key=lambda number: len(requests[number].args[0])), ANSWERED):
            found |= dict(zip(numbers, self._engine.generate([asks[number] for number in numbers]), strict=True))
        for number, answer in found.items():
            if isinstance(answer, Unanswered):
                self._note(requests[number], answer.problem)
        return [str(found[number]) for number in range(len(requests))]

    def _loglikelihood_tokens(self, requests: Any, **kwargs: Any) -> list[tuple[float, bool]]:
        """(texts, context ids, continuation ids) each; lm-eval's own way in."""
        found = self._scored({number: (context, ids) for number, (_, context, ids) in enumerate(requests)})
        return [found[number] for number in range(len(found))]

    def _scored(self, pairs: Mapping[T, Pair]) -> dict[T, tuple[float, bool]]:
        found: dict[T, tuple[float, bool]] = {}
        # choices of one question side by side, since one reading may answer them all
        for some in self._chunks(sorted(pairs, key=lambda key: (len(pairs[key][0]), pairs[key][0])), READ):
            found |= dict(zip(some, self._engine.log_likelihoods([pairs[key] for key in some]), strict=True))
        return found

    def _pair(self, context: str, continuation: str) -> Pair:
        """Token ids of a context and what follows it; raises InputError for what the model cannot read."""
        if self._chat and context:
            before = list(self._encode_turns(context, ""))
            pair = before, self._encode_turns(context, continuation)[len(before) :]
        elif context:
            pair = self._encode_pair(context, continuation)
        else:
            ids = self.tok_encode(continuation, add_special_tokens=False)
            pair = ([self.prefix_token_id], ids) if ids[:1] != [self.prefix_token_id] else (ids[:1], ids[1:])
        if len(pair[1]) > self._engine.max_length:
            raise InputError(f"a continuation of {len(pair[1])} tokens; the model reads {self._engine.max_length}")
        return pair

    def _turns(self, context: str, continuation: str) -> list[int]:
        """A conversation up to the answer, whose beginning is the continuation."""
        messages: list[Message] = json.loads(context)
        begun = messages.pop()["content"] if messages[-1]["role"] == "assistant" else ""
        if begun or continuation:
            messages.append({"role": "assistant", "content": begun + continuation})
        return self._engine.encode_chat(messages)

    def _ask(self, request: Any) -> Ask:
        context, options = request.args[:2]
        wanted = normalize_gen_kwargs(options, NEW_TOKENS)
        if wanted.get("do_sample") or wanted.get("temperature") or (unknown := set(wanted) - KNOWN):
            said = "samples" if wanted.get("do_sample") or wanted.get("temperature") else f"wants {min(unknown)}"
            raise ConfigError(f"task {request.task_name} {said}", fix="give it generation_kwargs of greedy decoding")
        stops, new = tuple(stop for stop in wanted["until"] if stop), wanted["max_gen_toks"]
        if new >= self._engine.max_length:
            what = f"task {request.task_name} may answer with {new} tokens; the model reads {self._engine.max_length}"
            raise ConfigError(what, fix="lower max_new_tokens in the protocol, or max_gen_toks in the task")
        if self._chat:
            return Ask(tuple(json.loads(context)), stop=stops, max_new_tokens=new)
        return Ask((), stop=stops, max_new_tokens=new, prompt=context)

    def _note(self, request: Any, problem: str) -> None:
        self.problems[request.task_name, request.doc_id] = problem

    @contextlib.contextmanager
    def _noting(self, request: Any) -> Iterator[None]:
        try:
            yield
        except InputError as error:
            self._note(request, error.what)

    def _chunks(self, items: Sequence[T], most: int) -> Iterator[Sequence[T]]:
        for start in range(0, len(items), most):
            self._alive()
            yield items[start : start + most]

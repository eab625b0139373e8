"""`megavlm serve` in a process of its own against the same model here: chat, images, streams, log-probabilities."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2
import openai
import pytest

from megavlm.megatron_mm.inference.sampling import Sampling


@pytest.fixture(scope="module")
def client(server: Any, tools: Any) -> openai.OpenAI:
    return openai.OpenAI(base_url=server.url, api_key=tools.TOKEN, max_retries=0)


@pytest.mark.parametrize("pictures", [0, 1, 2])
def test_a_chat_says_what_generation_says(client: openai.OpenAI, here: Any, tools: Any, pictures: int) -> None:
    images = [tools.picture(seed, 70 + 30 * seed) for seed in range(pictures)]
    told = client.chat.completions.create(**tools.asked("What is this?", *images))
    assert told.choices[0].message.content == here.answer("What is this?", *images)
    assert (told.choices[0].finish_reason, told.usage.completion_tokens) == ("length", 12)
    assert told.usage.prompt_tokens == told.usage.total_tokens - 12 > 20


def test_a_seed_is_a_seed_over_http_too(client: openai.OpenAI, here: Any, tools: Any) -> None:
    options = {"temperature": 0.9, "top_p": 0.8}
    said = [client.chat.completions.create(**tools.asked("Well?", seed=seed, **options)) for seed in (5, 6)]
    texts = [each.choices[0].message.content for each in said]
    assert texts == [here.answer("Well?", sampling=Sampling(0.9, 0.8, seed)) for seed in (5, 6)]
    assert texts[0] != texts[1]


def test_a_system_message_takes_the_place_of_the_trained_one(client: openai.OpenAI, tools: Any) -> None:
    body = tools.asked("Well?")
    plain, same, other = (
        client.chat.completions.create(**{**body, "messages": [*system, *body["messages"]]})
        for system in ([], [{"role": "system", "content": "Be brief."}], [{"role": "system", "content": "Be long."}])
    )
    assert plain.choices[0].message == same.choices[0].message != other.choices[0].message


def test_a_stream_is_the_whole_answer_in_pieces(client: openai.OpenAI, tools: Any) -> None:
    body = tools.asked("What is this?", tools.picture(3), logprobs=True, top_logprobs=2)
    whole = client.chat.completions.create(**body)
    chunks = list(client.chat.completions.create(**body, stream=True, stream_options={"include_usage": True}))
    assert "".join(c.choices[0].delta.content or "" for c in chunks[:-1]) == whole.choices[0].message.content
    assert [c.choices[0].finish_reason for c in chunks[:-1]] == [None] * 12 + ["length"]
    assert chunks[-1].usage == whole.usage
    streamed = [entry for c in chunks[:-1] if c.choices[0].logprobs for entry in c.choices[0].logprobs.content]
    assert streamed == whole.choices[0].logprobs.content
    assert all(entry.logprob == entry.top_logprobs[0].logprob > entry.top_logprobs[1].logprob for entry in streamed)


def test_a_stop_text_ends_the_answer_before_it(client: openai.OpenAI, here: Any, tools: Any) -> None:
    text = here.answer("What is this?")
    stop = text[len(text) // 2 : len(text) // 2 + 3]
    for stream in (False, True):
        told = client.chat.completions.create(**tools.asked("What is this?", stop=[stop, "never"]), stream=stream)
        choices = [chunk.choices[0] for chunk in told] if stream else [told.choices[0]]
        said = "".join((choice.delta if stream else choice.message).content for choice in choices)
        assert said == text[: text.index(stop)] and choices[-1].finish_reason == "stop"


@pytest.mark.parametrize("new", [0, 1, 5])
def test_echoed_logprobs_are_those_of_a_full_forward(client: openai.OpenAI, here: Any, tools: Any, new: int) -> None:
    texts = ["How many squares are there?", "Spell cat backwards, then the colours."]
    tokenizer = here.spec.tokenizer()
    prompts: list[Any] = [tokenizer.encode(texts[0]), tokenizer.encode(texts[1])] if new == 1 else texts
    told = client.completions.create(
        model=tools.NAME, prompt=prompts, max_tokens=new, echo=True, logprobs=1, temperature=0
    )
    for text, choice in zip(texts, told.choices, strict=True):
        ids = tokenizer.encode(text)
        for _ in range(new):
            ids.append(int(here.logprobs(ids)[-1].argmax()))
        wanted, found = here.logprobs(ids), choice.logprobs
        own = [wanted[place, token].item() for place, token in enumerate(ids[1:])]
        assert found.token_logprobs[0] is None and found.token_logprobs[1:] == pytest.approx(own, abs=1e-5)
        best = wanted[:-1].max(-1).values.tolist()
        assert found.top_logprobs[0] is None
        assert [max(top.values()) for top in found.top_logprobs[1:]] == pytest.approx(best, abs=1e-5)
        # as lm-eval asks whether a continuation is greedy: by these very numbers
        pairs = zip(found.token_logprobs[1:], found.top_logprobs[1:], strict=True)
        greedy = [own == max(top.values()) for own, top in pairs]
        assert greedy == [int(wanted[place].argmax()) == token for place, token in enumerate(ids[1:])]
        count = len(ids) - new
        assert "".join(found.tokens[:count]) == text and choice.text.startswith(text)
        offsets = zip(found.text_offset[:count], found.tokens, strict=False)
        assert all(text[at:].startswith(token) for at, token in offsets) and len(found.tokens) == len(ids)
        assert choice.finish_reason == "length"
    assert told.usage.completion_tokens == 2 * new


def test_a_plain_completion_has_no_template(client: openai.OpenAI, here: Any, tools: Any) -> None:
    ids = here.spec.tokenizer().encode("Red, green and")
    count = len(ids)
    body = {"model": tools.NAME, "prompt": "Red, green and", "max_tokens": 4, "temperature": 0}
    whole = client.completions.create(**body)
    streamed = list(client.completions.create(**body, stream=True))
    for _ in range(4):
        ids.append(int(here.logprobs(ids)[-1].argmax()))
    assert whole.choices[0].text == here.spec.tokenizer().decode(ids[count:])
    assert "".join(chunk.choices[0].text for chunk in streamed) == whole.choices[0].text
    assert whole.choices[0].logprobs is None


def test_many_at_once_are_answered_as_one_by_one(server: Any, tools: Any) -> None:
    bodies: list[tuple[str, dict[str, Any]]] = []
    for number in range(8):
        images = [tools.picture(seed, 40 + 25 * seed) for seed in range(number % 3)]
        sampled = {"temperature": 1.0, "seed": number} if number % 2 else {}
        body = tools.asked("Tell me. " * (1 + number), *images, max_tokens=5 + 3 * number, **sampled)
        bodies.append(("/chat/completions", body))
    score = {"model": tools.NAME, "prompt": ["One, two", "three"], "max_tokens": 0, "echo": True, "logprobs": 2}
    bodies.append(("/completions", score))

    def ask(path_and_body: tuple[str, Any]) -> list[dict[str, Any]]:
        response = server.post(*path_and_body)
        assert response.status_code == 200, response.text
        return response.json()["choices"]

    alone = [ask(body) for body in bodies]
    with ThreadPoolExecutor(9) as pool:
        together = list(pool.map(ask, bodies))
    assert alone[:-1] == together[:-1]
    for one, other in zip(alone[-1], together[-1], strict=True):
        assert one["text"] == other["text"]
        numbers = (choice["logprobs"]["token_logprobs"][1:] for choice in (one, other))
        assert next(numbers) == pytest.approx(next(numbers), abs=1e-5)


def test_models_and_health(server: Any, client: openai.OpenAI, tools: Any) -> None:
    (model,) = client.models.list().data
    assert (model.id, model.max_model_len) == (tools.NAME, 2048)
    health = httpx2.get(server.url.removesuffix("/v1") + "/health")
    assert health.json() == {"status": "ok"}


def test_events_end_as_clients_expect(server: Any, tools: Any) -> None:
    response = server.post("/chat/completions", tools.asked("Hm?", stream=True, max_tokens=2))
    lines = [line for line in response.text.split("\n\n") if line]
    assert lines[-1] == "data: [DONE]" and all(json.loads(line.removeprefix("data: ")) for line in lines[:-1])
    assert response.headers["content-type"].startswith("text/event-stream")

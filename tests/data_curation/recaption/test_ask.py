"""Who is asked, how often, and when it is nobody's fault but the endpoint's."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from megavlm.data_curation.recaption.ask import ENOUGH, EndpointCaptioner, Manners
from megavlm.data_curation.recaption.endpoint import Secret
from megavlm.data_curation.recaption.pool import NoEndpoint, Remote
from megavlm.data_curation.recaption.reply import Failure, Question, Reply
from megavlm.platform.errors import ConfigError, InputError, MegaVLMError

MANNERS = {
    "concurrency": 4,
    "attempts": 3,
    "timeout_seconds": 5.0,
    "backoff_seconds": 0.01,
    "longest_pause": 0.05,
    "patience_seconds": 0.4,
    "health": "models",
}


def captioner(*urls: str, key: str | None = None, **manners: Any) -> EndpointCaptioner:
    return EndpointCaptioner(list(map(Remote, urls)), "m", {}, Manners(**(MANNERS | manners)), Secret(key))


def questions(count: int) -> Iterator[Question]:
    return (Question(f"{n:03d}", b"image", "image/png", f"question {n}.") for n in range(count))


def ask(one: EndpointCaptioner, count: int) -> dict[str, Any]:
    kept: dict[str, Reply] = {}
    answers = one.answers(questions(count), lambda question, reply: kept.update({question.key: reply}))
    assert {key: answer for key, answer in answers.items() if isinstance(answer, Reply)} == kept
    return answers


def test_several_endpoints_share_the_questions_evenly(endpoint):
    fronts = [endpoint() for _ in range(3)]
    answers = ask(captioner(*(front.url for front in fronts)), 120)
    assert set(answers.values()) == {Reply("A dog.", "stop", 1)} and len(answers) == 120
    # exactly in turn but for the beginning, when not all of them have been found well yet
    assert all(sum(front.seen.questions.values()) >= 30 for front in fronts)


@pytest.mark.parametrize("bound", [1, 7])
def test_no_more_requests_are_under_way_than_agreed(endpoint, bound):
    front = endpoint(lambda count, body: "slow")
    ask(captioner(front.url, concurrency=bound), 3 * bound)
    assert front.seen.most_open == bound


def test_a_question_is_given_up_after_so_many_requests_and_says_why(endpoint):
    front = endpoint(lambda count, body: "500" if b"question 3." in body else "caption")
    answers = ask(captioner(front.url), 9)
    failed = answers.pop("003")
    assert isinstance(failed, Failure) and failed.attempts == 3 and failed.detail.startswith("HTTP 500")
    assert all(isinstance(answer, Reply) for answer in answers.values())
    assert sum(front.seen.questions.values()) == 8 + 3


def test_what_cannot_get_better_is_asked_once(endpoint):
    front = endpoint(lambda count, body: "400" if b"question 3." in body else "caption")
    failed = ask(captioner(front.url, key="sk-xyz"), 9)["003"]
    assert failed.attempts == 1 and "400" in failed.detail
    assert "sk-xyz" not in failed.detail and "[key]" in failed.detail, "the server repeated the key, we do not"


@pytest.mark.parametrize("status", ["401", "403", "404"])
def test_an_endpoint_that_refuses_us_is_asked_no_further(endpoint, status):
    front = endpoint(lambda count, body: status)
    with pytest.raises(ConfigError, match=status) as caught:
        ask(captioner(front.url, key="sk-xyz"), 50)
    assert "sk-xyz" not in str(caught.value) and sum(front.seen.questions.values()) <= 4


def test_a_key_that_is_wanted_is_found_missing_before_anything_is_asked(endpoint):
    front = endpoint()
    front.health = b"401 Unauthorized"
    with pytest.raises(ConfigError, match="a key is wanted"):
        ask(captioner(front.url), 5)
    assert not front.seen.questions


def test_when_nothing_is_ever_answered_it_is_not_the_samples(endpoint):
    front = endpoint(lambda count, body: "400")
    with pytest.raises(MegaVLMError, match=f"none of the first {ENOUGH} questions"):
        ask(captioner(front.url, concurrency=1), 100)
    assert sum(front.seen.questions.values()) == ENOUGH
    front.plan = lambda count, body: "400"
    assert len(ask(captioner(front.url), ENOUGH - 1)) == ENOUGH - 1, "a few bad samples alone are no reason"


def test_an_endpoint_that_is_not_there_is_waited_for_as_long_as_agreed(endpoint):
    front = endpoint()
    front.hang_up()
    one, started = captioner(front.url), time.monotonic()
    with pytest.raises(NoEndpoint, match="no endpoint answers"):
        ask(one, 5)
    waited = time.monotonic() - started
    assert waited >= 0.4
    with pytest.raises(NoEndpoint):  # the next shard looks once
        ask(one, 5)
    assert time.monotonic() - started - waited < 0.3
    front.listen()
    assert len(ask(one, 5)) == 5


def test_an_endpoint_that_says_it_is_unwell_is_left_alone(endpoint):
    """A load balancer without its server: 503 for all, the health URL too. No sample pays for that."""
    front = endpoint()

    def fall_ill(count: int, body: bytes) -> str:
        if count == 10:
            front.health, front.well_after = b"503 Service Unavailable", front.seen.looks + 4
        return "503" if front.health.startswith(b"503") else "caption"

    front.plan = fall_ill
    answers = ask(captioner(front.url, attempts=4, patience_seconds=20.0), 40)
    assert all(isinstance(answer, Reply) for answer in answers.values())
    # in vain: three in a row until it is looked at, and what was under way then
    assert front.seen.faults["503"] <= 3 + 4


def test_no_question_pays_for_an_endpoint_that_nobody_reached(endpoint):
    front = endpoint()

    def leave_for_a_while(count: int, body: bytes) -> str:
        if count == 5:
            front.hang_up()
            threading.Timer(0.3, front.listen).start()
        return "caption"

    front.plan = leave_for_a_while
    answers = ask(captioner(front.url, attempts=1, concurrency=1, patience_seconds=20.0), 30)
    assert set(answers.values()) == {Reply("A dog.", "stop", 1)}


def test_one_of_two_endpoints_goes_and_the_other_does_all(endpoint):
    gone, stays = endpoint(lambda count, body: leave(count)), endpoint()

    def leave(count: int) -> str:
        if count < 5:
            return "caption"
        gone.hang_up()
        return "drop"

    answers = ask(captioner(gone.url, stays.url, concurrency=2), 60)
    assert all(isinstance(answer, Reply) for answer in answers.values())
    assert sum(stays.seen.questions.values()) == 60 - 5


def test_what_goes_wrong_while_questions_are_made_comes_out(endpoint):
    def broken() -> Iterator[Question]:
        yield from questions(3)
        raise InputError("the shard is torn")

    with pytest.raises(InputError, match="torn"):
        captioner(endpoint().url).answers(broken(), lambda question, reply: None)


def test_no_question_no_endpoint():
    assert captioner("http://127.0.0.1:9/v1").answers(iter(()), lambda question, reply: None) == {}

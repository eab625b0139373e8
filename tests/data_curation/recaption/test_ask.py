"""Who is asked, how often, and when it is nobody's fault but the endpoint's."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from megavlm.data_curation.recaption.ask import ENOUGH, EndpointCaptioner, Manners
from megavlm.data_curation.recaption.desk import PAGES
from megavlm.data_curation.recaption.endpoint import Secret
from megavlm.data_curation.recaption.page import Page, Wanted
from megavlm.data_curation.recaption.pool import NoEndpoint, Remote
from megavlm.data_curation.recaption.question import AboutImage
from megavlm.data_curation.recaption.reply import Failure, Reply
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


@pytest.fixture
def ask(page: Callable[..., Page[AboutImage]]) -> Callable[..., dict[str, Any]]:
    """ask(captioner, count) -> question -> answer."""

    def ask(one: EndpointCaptioner, what: Any) -> dict[str, Any]:
        asked = page(what)
        assert list(one.answer(iter([asked]))) == [asked]
        return asked.answers()

    return ask


def test_several_endpoints_share_the_questions_evenly(ask, endpoint):
    fronts = [endpoint() for _ in range(3)]
    answers = ask(captioner(*(front.url for front in fronts)), 120)
    assert set(answers.values()) == {Reply("A dog.", "stop", 1)} and len(answers) == 120
    # exactly in turn but for the beginning, when not all of them have been found well yet
    assert all(sum(front.seen.questions.values()) >= 30 for front in fronts)


@pytest.mark.parametrize("bound", [1, 7])
def test_no_more_requests_are_under_way_than_agreed(ask, endpoint, bound):
    front = endpoint(lambda count, body: "slow")
    ask(captioner(front.url, concurrency=bound), 3 * bound)
    assert front.seen.most_open == bound


def test_a_question_is_given_up_after_so_many_requests_and_says_why(ask, endpoint):
    front = endpoint(lambda count, body: "500" if b"question 3." in body else "caption")
    answers = ask(captioner(front.url), 9)
    failed = answers.pop("003")
    assert isinstance(failed, Failure) and failed.attempts == 3 and failed.detail.startswith("HTTP 500")
    assert all(isinstance(answer, Reply) for answer in answers.values())
    assert sum(front.seen.questions.values()) == 8 + 3


def test_what_cannot_get_better_is_asked_once(ask, endpoint):
    front = endpoint(lambda count, body: "400" if b"question 3." in body else "caption")
    failed = ask(captioner(front.url, key="sk-xyz"), 9)["003"]
    assert failed.attempts == 1 and "400" in failed.detail
    assert "sk-xyz" not in failed.detail and "[key]" in failed.detail, "the server repeated the key, we do not"


@pytest.mark.parametrize("status", ["401", "403", "404"])
def test_an_endpoint_that_refuses_us_is_asked_no_further(ask, endpoint, status):
    front = endpoint(lambda count, body: status)
    with pytest.raises(ConfigError, match=status) as caught:
        ask(captioner(front.url, key="sk-xyz"), 50)
    assert "sk-xyz" not in str(caught.value) and sum(front.seen.questions.values()) <= 4


def test_a_key_that_is_wanted_is_found_missing_before_anything_is_asked(ask, endpoint):
    front = endpoint()
    front.health = b"401 Unauthorized"
    with pytest.raises(ConfigError, match="a key is wanted"):
        ask(captioner(front.url), 5)
    assert not front.seen.questions


def test_when_nothing_is_ever_answered_it_is_not_the_samples(ask, endpoint):
    front = endpoint(lambda count, body: "400")
    with pytest.raises(MegaVLMError, match=f"none of the first {ENOUGH} questions"):
        ask(captioner(front.url, concurrency=1), 100)
    assert sum(front.seen.questions.values()) == ENOUGH
    front.plan = lambda count, body: "400"
    assert len(ask(captioner(front.url), ENOUGH - 1)) == ENOUGH - 1, "a few bad samples alone are no reason"


def test_an_endpoint_that_is_not_there_is_waited_for_as_long_as_agreed(ask, endpoint):
    front = endpoint()
    front.hang_up()
    one, started = captioner(front.url), time.monotonic()
    with pytest.raises(NoEndpoint, match="no endpoint answers"):
        ask(one, 5)
    waited = time.monotonic() - started
    assert waited >= 0.4
    with pytest.raises(NoEndpoint):  # the next shard looks once
        ask(one, 5)
    assert time.monotonic() - started - waited < waited
    front.listen()
    assert len(ask(one, 5)) == 5


def test_an_endpoint_that_says_it_is_unwell_is_left_alone(ask, endpoint):
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


def test_no_question_pays_for_an_endpoint_that_nobody_reached(ask, endpoint):
    front = endpoint()

    def leave_for_a_while(count: int, body: bytes) -> str:
        if count == 5:
            front.hang_up()
            threading.Timer(0.3, front.listen).start()
        return "caption"

    front.plan = leave_for_a_while
    answers = ask(captioner(front.url, attempts=1, concurrency=1, patience_seconds=20.0), 30)
    assert set(answers.values()) == {Reply("A dog.", "stop", 1)}


def test_one_of_two_endpoints_goes_and_the_other_does_all(ask, endpoint):
    gone, stays = endpoint(lambda count, body: leave(count)), endpoint()

    def leave(count: int) -> str:
        if count < 5:
            return "caption"
        gone.hang_up()
        return "drop"

    answers = ask(captioner(gone.url, stays.url, concurrency=2), 60)
    assert all(isinstance(answer, Reply) for answer in answers.values())
    assert sum(stays.seen.questions.values()) == 60 - 5


def test_what_goes_wrong_while_questions_are_made_comes_out(endpoint, page):
    def broken() -> Iterator[Wanted[AboutImage]]:
        yield Wanted("a", "a" * 64, lambda: AboutImage("a" * 64, b"image", "image/png", "words"))
        raise InputError("the shard is torn")

    one, torn, whole = captioner(endpoint().url), page(broken()), page(3)
    assert list(one.answer(iter([torn, whole]))) == [torn, whole]
    with pytest.raises(InputError, match="torn"):
        torn.answers()
    assert len(whole.answers()) == 3, "the next page is none the worse"


def test_no_question_no_endpoint(page):
    one = captioner("http://127.0.0.1:9/v1")
    assert [empty.answers() for empty in one.answer(page(0, first) for first in range(30))] == [{}] * 30
    assert list(one.answer(iter(()))) == []


def test_the_end_of_a_page_leaves_nobody_idle(endpoint, page):
    """The first answer of the first two pages comes once every other question was asked."""

    def plan(count: int, body: bytes) -> str:
        return "after-60" if b"question 0." in body or b"question 10." in body else "slow-0.05"

    front = endpoint(plan)
    pages = [page(10, first) for first in range(0, 60, 10)]
    done = list(captioner(front.url).answer(iter(pages)))
    assert done == pages and [sorted(one.answers()) for one in done] == [
        [f"{n:03d}" for n in range(first, first + 10)] for first in range(0, 60, 10)
    ]
    assert front.seen.most_open == 4 and sum(front.seen.questions.values()) == 60, "none was given up and asked again"


def test_not_more_pages_are_opened_than_are_taken(endpoint, page):
    opened = []

    def pages() -> Iterator[Page[AboutImage]]:
        for first in range(0, 90, 3):
            opened.append(first)
            yield page(3, first)

    for number, done in enumerate(captioner(endpoint().url).answer(pages())):
        assert len(done.answers()) == 3 and len(opened) <= number + PAGES + 1


def test_an_endpoint_that_goes_costs_the_pages_in_hand_and_the_others_look_once(endpoint, page):
    front = endpoint()

    def leave(count: int, body: bytes) -> str:
        if count < 12:
            return "caption"
        front.hang_up()
        return "drop"

    front.plan = leave
    pages = [page(10, first) for first in range(0, 120, 10)]
    answered = 0
    for done in captioner(front.url).answer(iter(pages)):
        if done is pages[0]:
            assert len(done.answers()) == 10
            answered += 1
        else:
            with pytest.raises(NoEndpoint):
                done.answers()
    assert answered == 1
    pages = [page(10, first) for first in range(0, 30, 10)]
    front.listen()
    front.plan = lambda count, body: "caption"
    assert all(len(done.answers()) == 10 for done in captioner(front.url).answer(iter(pages)))


def test_whoever_stops_in_the_middle_leaves_nothing_running(endpoint, page):
    front = endpoint(lambda count, body: "slow-0.05")
    done = captioner(front.url).answer(iter([page(10, first) for first in range(0, 50, 10)]))
    next(done)
    done.close()
    time.sleep(0.1)
    asked = sum(front.seen.questions.values())
    time.sleep(0.1)
    assert sum(front.seen.questions.values()) == asked < 50

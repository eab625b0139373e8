"""Work that fails, that nobody waits for, and that is too much, at the desk between HTTP and the model."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from megavlm.megatron_mm.inference.generate import Ask
from megavlm.megatron_mm.inference.score import text_pack
from megavlm.megatron_mm.serving.crew import Crew
from megavlm.megatron_mm.serving.desk import Desk, Ticket, attend
from megavlm.megatron_mm.serving.engine import Engine, Generation, Scoring
from megavlm.megatron_mm.serving.limits import Limits, Refused


def attended(here: Any, limits: Limits, visit: Any) -> Any:
    """What `visit(desk)` returns, the model at work in a thread meanwhile."""
    crew, desk, over = Crew(), Desk(limits), threading.Event()
    engine = Engine(here.model, here.spec.tokenizer(), crew, limits.batch)
    thread = threading.Thread(target=attend, args=(desk, engine, crew, lambda: not over.is_set()))
    thread.start()
    try:
        return asyncio.run(visit(desk))
    finally:
        over.set()
        thread.join()


def test_what_fails_costs_its_batch_and_the_next_one_is_done(here: Any, capsys: pytest.CaptureFixture[str]) -> None:
    async def visit(desk: Desk) -> tuple[list[int], list[int]]:
        bad = desk.submit([Scoring((1, 2, 3)), Scoring(())])  # a text without tokens never gets past the HTTP side
        statuses = []
        for ticket in bad:
            with pytest.raises(Refused) as refused:
                for _ in range(2):
                    await ticket.next()
            statuses.append(refused.value.status)
        (good,) = desk.submit([Scoring((1, 2, 3))])
        return statuses, [each.token for each in await good.next()]

    assert attended(here, Limits(), visit) == ([500, 500], [2, 3])
    assert "no tokens" in capsys.readouterr().err


def test_who_hangs_up_frees_the_place(here: Any) -> None:
    async def visit(desk: Desk) -> tuple[int, int]:
        ask = Ask(text_pack([[1, 2, 3]], here.model), max_new_tokens=2000)
        gone, stays = desk.submit([Generation(ask), Generation(Ask(ask.prompt, max_new_tokens=40))])
        await gone.next()
        gone.gone = True
        finish = None
        while finish is None:
            finish = (await stays.next()).finish
        heard = gone._events.qsize()
        (last,) = desk.submit([Scoring((1, 2))])  # waits for the batch under way to end
        await last.next()
        return heard, gone._events.qsize()

    heard, after = attended(here, Limits(), visit)
    assert heard == after < 45


def test_only_so_many_wait() -> None:
    async def visit() -> None:
        desk = Desk(Limits(waiting=3, batch=2))
        tickets: list[Ticket] = desk.submit([Scoring((1,))] * 2)
        with pytest.raises(Refused) as refused:
            desk.submit([Scoring((1,))] * 2)
        assert refused.value.status == 429
        tickets += desk.submit([Scoring((1,))])
        tickets[0].gone = True
        assert desk.take(0) == [tickets[1]] and desk.take(0) == [tickets[2]] and desk.take(0) == []

    asyncio.run(visit())

"""Teacher forcing against real generation, under every layout: one start of two ranks for all of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from megavlm.megatron_mm.data.tokenizer import load_tokenizer
from megavlm.platform.shards import ShardWriter

WORKER = Path(__file__).parent / "two_ranks.py"
TOKENIZER = load_tokenizer("mini")
LAYOUTS = ["dp2", "tp2", "tp2_sp", "pp2", "pp2_vp2", "cp2"]


def lessons(ask: Callable, picture: Callable) -> list[tuple[str, dict]]:
    """Text and pictures with answers of one to three words."""
    words = ["red", "blue green", "one two three", "seven", "left"]
    text = [ask(f"text-{i}", f"What is {i}{i}?", word, kind="text") for i, word in enumerate(words)]
    seen = [
        ask(f"image-{i}", "Which?", word, "image", picture(i, 28 + 30 * (i % 2), 28)) for i, word in enumerate(words)
    ]
    return [*text, *seen]


def held_out(ask: Callable, picture: Callable) -> list[tuple[str, dict]]:
    """The lessons, some of them with another answer than was taught, and three items that cannot be shown."""
    taught = lessons(ask, picture)
    other = [
        ask("other-0", "What is 00?", "blue", kind="text"),
        ask("other-1", "What is 11?", "blue red", kind="text"),
        ask("longer", "What is 33?", "seven eight", kind="text"),
        ask("shorter", "What is 22?", "one two", kind="text"),
    ]
    unshown = [
        ask("long", "long " * 60, "red"),
        ask("no-header", "Which?", "red", image=picture(9)[:300]),
        ask("cut", "Which?", "red", image=picture(9, 200, 200)[:9000]),
    ]
    return [*taught, *other, *unshown]


@pytest.fixture(scope="module")
def results(
    tmp_path_factory: pytest.TempPathFactory, ask: Callable, picture: Callable, on_ranks: Callable
) -> dict[str, Any]:
    work = tmp_path_factory.mktemp("two-ranks")
    for name, samples in (("lessons", lessons(ask, picture)), ("set", held_out(ask, picture))):
        with ShardWriter(work / name) as writer:
            for key, fields in samples:
                writer.write(key, fields)
    on_ranks(WORKER, 2, work / "lessons", work / "set", work)
    return json.loads((work / "results.json").read_text())


@pytest.mark.multiprocess
@pytest.mark.parametrize("layout", LAYOUTS)
def test_right_exactly_when_generation_says_the_expected_answer(results: dict[str, Any], layout: str) -> None:
    said = results["dp2"]["generated"]
    outcomes = set()
    for item in results[layout]["predictions"]:
        if item["problem"]:
            continue
        expected = [*TOKENIZER.encode(item["expected"]), TOKENIZER.id_of("<|im_end|>")]
        assert item["correct"] == (said[item["id"]][: len(expected)] == expected), item
        if not item["correct"]:
            assert TOKENIZER.decode(said[item["id"]]).startswith(item["answer"].removesuffix("..."))
        outcomes.add(item["correct"])
    assert outcomes == {True, False}


@pytest.mark.multiprocess
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_predicts_the_same_in_the_same_order(results: dict[str, Any], layout: str) -> None:
    assert results[layout]["predictions"] == results["dp2"]["predictions"]
    assert results[layout]["blind"] == results["dp2"]["blind"]


@pytest.mark.multiprocess
def test_what_was_taught_is_right_and_what_cannot_be_shown_is_listed(results: dict[str, Any]) -> None:
    items = {item["id"]: item for item in results["dp2"]["predictions"]}
    assert all(item["correct"] for name, item in items.items() if name.startswith(("text", "image")))
    assert not any(items[name]["correct"] for name in ("other-0", "other-1", "longer", "shorter"))
    assert {name: item["problem"] for name, item in items.items() if item["problem"]} == {
        "long": "too_long",
        "no-header": "image_truncated",
        "cut": "truncated",
    }


@pytest.mark.multiprocess
def test_blind_control_changes_pictures_and_leaves_text_alone(results: dict[str, Any]) -> None:
    plain, blind = ({item["id"]: item for item in results["dp2"][which]} for which in ("predictions", "blind"))
    pictures = [name for name in plain if name.startswith("image")]
    assert not any(blind[name]["correct"] for name in pictures)
    assert all(blind[name] == item for name, item in plain.items() if item["kind"] == "text")


@pytest.mark.multiprocess
def test_two_ranks_of_a_model_generate_what_one_does(results: dict[str, Any]) -> None:
    assert results["tp2"]["generated"] == results["pp2"]["generated"] == results["dp2"]["generated"]


@pytest.mark.multiprocess
def test_generation_refuses_layouts_that_would_answer_wrongly(results: dict[str, Any]) -> None:
    assert results["tp2_sp"]["refused"] == "parallel.sequence_parallel"
    assert results["pp2_vp2"]["refused"] == "parallel.vp"
    assert results["cp2"]["refused"] == "parallel.cp"

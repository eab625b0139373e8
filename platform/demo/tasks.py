"""The demo's two tasks as training and held-out sets: questions about pictures, and exercises in text alone."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..images import decode
from ..shards import ShardReader, ShardWriter
from .photos import png
from .rendering import COLOURS, FRAMES, WEAVES, Scene, random_scene, render

# Question type -> (question, answer). "weave" is the one that only a tile can answer.
QUESTIONS: dict[str, tuple[str, Callable[[Scene], str]]] = {
    "colour": ("What colour is the shape?", lambda scene: scene.colour),
    "frame": ("What is the frame made of?", lambda scene: scene.frame),
    "weave": ("Which gem is woven?", lambda scene: scene.weave),
}
Digits = tuple[int, ...]
Facts = tuple[str, str, str]  # colour, frame, weave
Sample = tuple[str, dict[str, Any]]
EXERCISES: dict[str, tuple[str, Callable[[Digits], Digits]]] = {
    "reverse": ("Reverse", lambda digits: digits[::-1]),
    "rotate": ("Rotate", lambda digits: (*digits[1:], digits[0])),
}
DIGITS = 3
HELD_OUT_SHARE = 0.15


def write_tasks(survivors: Path, folder: Path, *, seed: int, renderings: int, readings: int, held_out: int) -> None:
    """Write vqa-train, vqa-heldout, text-train and text-heldout below `folder`, deterministic in `seed`.

    `survivors` is the folder of curated shards. No photograph, digits or facts of a held-out item occur in training.
    The sets appear together or not at all: they share one stream of chance, so a part of them would not fit the rest.
    """
    if folder.exists():
        return
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)  # of a run that was killed
    rng = np.random.default_rng(seed)
    train, test = _split(list(_photographs(survivors)), rng)
    _write(partial / "vqa-train", _visual_conversations(train, renderings, rng))
    _write(partial / "vqa-heldout", _visual_items(test, held_out, rng))
    known, unknown = _split(list(itertools.product(range(10), repeat=DIGITS)), rng)
    told, untold = _split(list(itertools.product(COLOURS, FRAMES, WEAVES)), rng)
    exercises = [_text_conversations(known), _reading_conversations(told, readings, rng)]
    _write(partial / "text-train", itertools.chain(*exercises))
    items = [_text_items(unknown), _reading_items(untold, rng)]
    _write(partial / "text-heldout", itertools.chain(*items))
    partial.rename(folder)


def _photographs(survivors: Path) -> Iterator[Image.Image]:
    reader = ShardReader(survivors)
    for i in range(len(reader)):
        fields = reader.read(i).fields
        image = next(data for name, data in fields.items() if name not in {"txt", "json"})
        yield Image.fromarray(decode(image))


def _split(items: list[Any], rng: np.random.Generator) -> tuple[list[Any], list[Any]]:
    """A random HELD_OUT_SHARE of the items set apart: (training, held out)."""
    order = rng.permutation(len(items))
    cut = max(1, round(len(items) * HELD_OUT_SHARE))
    return [items[i] for i in order[cut:]], [items[i] for i in order[:cut]]


def _visual_conversations(photos: list[Image.Image], count: int, rng: np.random.Generator) -> Iterator[Sample]:
    """One picture and all its questions, in a random order, as a conversation of several turns."""
    for i in range(count):
        scene = random_scene(rng)
        picture = render(photos[i % len(photos)], scene, rng)
        kinds = [list(QUESTIONS)[k] for k in rng.permutation(len(QUESTIONS))]
        turns = [turn for kind in kinds for turn in _turn(QUESTIONS[kind][0], QUESTIONS[kind][1](scene))]
        turns[0]["content"] = "<image>" + turns[0]["content"]
        yield f"picture-{i:06d}", {"png": png(picture), "json": {"messages": turns}}


def _visual_items(photos: list[Image.Image], count: int, rng: np.random.Generator) -> Iterator[Sample]:
    """One picture and one question each, the question types in turn."""
    for i, kind in zip(range(count), itertools.cycle(QUESTIONS)):
        scene = random_scene(rng)
        picture = render(photos[i % len(photos)], scene, rng)
        question, answer = QUESTIONS[kind]
        yield f"{kind}-{i:06d}", {"png": png(picture), "json": _item(kind, "<image>" + question, answer(scene))}


def _text_conversations(known: list[Digits]) -> Iterator[Sample]:
    for kind, digits in itertools.product(EXERCISES, known):
        yield _name(kind, digits), {"json": {"messages": _turn(*_exercise(kind, digits))}}


def _text_items(unknown: list[Digits]) -> Iterator[Sample]:
    for kind, digits in itertools.product(EXERCISES, unknown):
        yield _name(kind, digits), {"json": _item(kind, *_exercise(kind, digits))}


def _reading_conversations(told: list[Facts], count: int, rng: np.random.Generator) -> Iterator[Sample]:
    """A list of facts in any order, then two questions about it: what a picture is to be read like later."""
    for i in range(count):
        facts = told[int(rng.integers(len(told)))]
        kinds = [list(QUESTIONS)[k] for k in rng.permutation(len(QUESTIONS))[:2]]
        turns = [turn for kind in kinds for turn in _turn(QUESTIONS[kind][0], _answer(kind, facts))]
        turns[0]["content"] = _told(facts, rng) + turns[0]["content"]
        yield f"reading-{i:06d}", {"json": {"messages": turns}}


def _reading_items(untold: list[Facts], rng: np.random.Generator) -> Iterator[Sample]:
    for (i, facts), kind in itertools.product(enumerate(untold), QUESTIONS):
        question = _told(facts, rng) + QUESTIONS[kind][0]
        yield f"reading-{kind}-{i:03d}", {"json": _item("reading", question, _answer(kind, facts))}


def _told(facts: Facts, rng: np.random.Generator) -> str:
    return "".join(facts[int(i)] + "\n" for i in rng.permutation(len(facts)))


def _answer(kind: str, facts: Facts) -> str:
    return dict(zip(("colour", "frame", "weave"), facts, strict=True))[kind]


def _exercise(kind: str, digits: Digits) -> tuple[str, str]:
    verb, solve = EXERCISES[kind]
    return f"{verb} {' '.join(map(str, digits))}", " ".join(map(str, solve(digits)))


def _name(kind: str, digits: Digits) -> str:
    return f"{kind}-{''.join(map(str, digits))}"


def _turn(question: str, answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def _item(kind: str, question: str, answer: str) -> dict[str, object]:
    return {"messages": _turn(question, answer), "answer": answer, "kind": kind}


def _write(folder: Path, samples: Iterable[Sample]) -> None:
    with ShardWriter(folder) as writer:
        for key, fields in samples:
            meta = fields["json"] | {"id": key}
            writer.write(key, fields | {"json": meta})

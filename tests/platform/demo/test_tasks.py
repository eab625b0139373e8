"""The task sets: answers are right, and nothing held out was seen in training."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from megavlm.platform.demo import rendering
from megavlm.platform.demo.photos import crops, png
from megavlm.platform.demo.tasks import QUESTIONS, write_tasks
from megavlm.platform.shards import ShardReader, ShardWriter

KINDS = {"colour": rendering.COLOURS, "frame": rendering.FRAMES, "weave": rendering.WEAVES}


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tasks")
    with ShardWriter(folder / "survivors") as writer:
        for i, (caption, image) in enumerate(crops(np.random.default_rng(2))[:30]):
            writer.write(f"{i:09d}", {"png": png(image), "txt": caption, "json": {"key": i}})
    write_tasks(folder / "survivors", folder / "sets", seed=4, renderings=40, readings=60, held_out=36)
    return {path.name: ShardReader(path) for path in (folder / "sets").iterdir()}


def samples(reader):
    return [json.loads(reader.read(i).fields["json"]) for i in range(len(reader))]


def test_items_carry_the_answer_of_their_kind(sets):
    items = samples(sets["vqa-heldout"])
    assert len(items) == 36
    for item in items:
        assert item["answer"] in KINDS[item["kind"]]
        assert item["messages"][-1] == {"role": "assistant", "content": item["answer"]}
        assert item["messages"][0]["content"] == "<image>" + QUESTIONS[item["kind"]][0]


def test_frames_are_what_the_answer_says(sets):
    """The frame is drawn last on no pixel of the corner, so the corner is its colour."""
    reader = sets["vqa-heldout"]
    for i, item in enumerate(samples(reader)):
        if item["kind"] == "frame":
            picture = Image.open(io.BytesIO(reader.read(i).fields["png"]))
            assert picture.getpixel((1, 1)) == rendering.FRAMES[item["answer"]]


def test_exercises_are_solved(sets):
    for item in samples(sets["text-heldout"]):
        question, answer = item["messages"][0]["content"], item["answer"]
        if item["kind"] == "reading":
            assert answer in question.split("\n")[:3]
            continue
        digits = question.split()[1:]
        assert answer.split() == (digits[::-1] if item["kind"] == "reverse" else digits[1:] + digits[:1])


def test_nothing_held_out_occurs_in_training(sets):
    def given(item):
        content = item["messages"][0]["content"]
        return frozenset(content.split("\n")[:3]) if "\n" in content else content

    trained = {given(item) for item in samples(sets["text-train"])}
    held_out = {given(item) for item in samples(sets["text-heldout"])}
    assert held_out and not trained & held_out


def test_a_conversation_asks_every_question_once_and_shows_the_picture_first(sets):
    for item in samples(sets["vqa-train"]):
        asked = [turn["content"].removeprefix("<image>") for turn in item["messages"][::2]]
        assert sorted(asked) == sorted(question for question, _ in QUESTIONS.values())
        assert [turn["content"].count("<image>") for turn in item["messages"]] == [1] + [0] * 5


def test_there_are_enough_text_items_for_a_gate_at_two_percent(sets):
    assert len(sets["text-heldout"]) >= 200


def test_a_killed_rendering_leaves_nothing_of_itself(tmp_path):
    """The sets share one stream of chance: a part left by a killed run must not be completed, but made anew."""
    with ShardWriter(tmp_path / "survivors") as writer:
        for i, (caption, image) in enumerate(crops(np.random.default_rng(2))[:12]):
            writer.write(f"{i:09d}", {"png": png(image), "txt": caption, "json": {"key": i}})
    sizes = {"seed": 4, "renderings": 6, "readings": 8, "held_out": 6}
    write_tasks(tmp_path / "survivors", tmp_path / "whole", **sizes)
    left = tmp_path / "again.partial" / "vqa-train"
    left.mkdir(parents=True)
    (left / "000007.tar").write_bytes(b"cut")
    write_tasks(tmp_path / "survivors", tmp_path / "again", **sizes)
    files = {path.relative_to(tmp_path / "whole") for path in (tmp_path / "whole").rglob("*") if path.is_file()}
    assert files == {path.relative_to(tmp_path / "again") for path in (tmp_path / "again").rglob("*") if path.is_file()}
    for name in files:
        if name.suffix == ".tar":
            assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()
    assert not list(tmp_path.glob("*.partial"))

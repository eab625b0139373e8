"""`megavlm data convert`: published layouts to shards that training reads, and why rows give nothing."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from megavlm.data_curation.convert.fields import with_marks
from megavlm.data_curation.text.sample import BadRow
from megavlm.megatron_mm.data.samples import Conversation, read_conversation
from megavlm.platform.shards import ShardReader


def read(folder: Path) -> list[Conversation]:
    reader = ShardReader(folder)
    return [read_conversation(reader.read(number)) for number in range(len(reader))]


def rejected(folder: Path) -> list[tuple[int, str]]:
    lines = [json.loads(line) for line in (folder / "rejected.jsonl").read_text().splitlines()]
    assert all(line["detail"] and line["shard"] for line in lines)
    return [(line["row"], line["reason"]) for line in lines]


def llava(question: str, image: Any = None, **more: Any) -> dict[str, Any]:
    turns = [{"from": "human", "value": question}, {"from": "gpt", "value": "yes"}]
    return {"id": "x", "conversations": turns, **({} if image is None else {"image": image}), **more}


def questions(folder: Path) -> list[str]:
    return [each.messages[0]["content"] for each in read(folder)]


def test_llava_s_odd_places(convert, pictures, tmp_path):
    rows = [
        llava("<image>\nWhat?", "a.jpg"),
        llava("What?\n<image>", "sub/b.png"),
        llava("What <image> is it?", "./sub/c d.jpeg"),
        llava("No mark?", "a.jpg"),
        llava("<image><image> differ?", ["a.jpg", "sub/b.png"]),
        llava("Which?", ["sub/b.png", "a.jpg"], id=7),
        llava("Text\r\nonly", id=7),
        llava("<image>\nOne path", ["noending"]),
        llava("<image>\nBack", "sub\\b.png"),
    ]
    told = convert("llava", rows, "--images", str(tmp_path / "images"))
    assert told["rows"] == told["samples"] == len(rows) and told["images"] == 10 and told["rejected"] == {}
    assert questions(tmp_path / "out") == [
        "<image>\nWhat?", "What?\n<image>", "What <image> is it?", "<image>\nNo mark?", "<image><image> differ?",
        "<image>\n<image>\nWhich?", "Text\nonly", "<image>\nOne path", "<image>\nBack",
    ]  # fmt: skip
    a, b, c, webp = pictures.values()
    assert [each.images for each in read(tmp_path / "out")] == [[a], [b], [c], [a], [a, b], [b, a], [], [webp], [b]]
    reader = ShardReader(tmp_path / "out")
    assert [sorted(reader.fields(number)) for number in (0, 4, 7)] == [
        ["0.jpg", "json"], ["0.jpg", "1.png", "json"], ["0.webp", "json"],
    ]  # fmt: skip
    assert [json.loads(reader.read(k).fields["json"])["id"] for k in (0, 5, 6)] == ["x", "7", "7"]


def test_marks_come_first_as_in_llava_s_training_where_asked(convert, pictures, tmp_path):
    rows = [llava("What <image> is it?", "a.jpg"), llava("<image>a <image>", ["a.jpg"] * 2)]
    convert("llava", rows, "--images", str(tmp_path / "images"), "--images-first")
    assert questions(tmp_path / "out") == ["<image>\nWhat  is it?", "<image>\n<image>\na"]


def test_rows_that_give_nothing_are_named(convert, pictures, tmp_path):
    bad = [
        (llava("<image>", "none.jpg"), "missing_image"),
        (llava("<image>", "sub"), "missing_image"),
        (llava("<image>", "x" * 5000), "missing_image"),
        (llava("<image>", {"path": None}), "missing_image"),
        (llava("<image>", 3), "missing_image"),
        (llava("<image>", "../secret.jpg"), "unsafe_name"),
        (llava("<image>", "/etc/hostname"), "unsafe_name"),
        (llava("<image>", "sub/..\\..\\secret.jpg"), "unsafe_name"),
        (llava("<image>", "link.jpg"), "unsafe_name"),
        (llava("<image>", "https://example.org/a.jpg"), "remote_image"),
        (llava("<image>", "broken.jpg"), "image_not_an_image"),
        (llava("<image> <image>", "a.jpg"), "image_count"),
        (llava("<image>", ["a.jpg", "a.jpg"]), "image_count"),
        (llava("<image>"), "image_count"),
        (llava("<image>", "a.jpg", images=["sub/b.png"]), "image_count"),
        ({"id": "no turns", "image": "a.jpg"}, "missing_column"),
        ({"conversations": [{"from": "tool", "value": "a"}]}, "unknown_role"),
        ({"conversations": [{"from": "gpt", "value": "a"}]}, "no_question"),
        ({"conversations": [{"from": "human", "value": "a"}]}, "no_answer"),
        ({"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": " "}]}, "empty_turn"),
        ({"conversations": [{"from": "human", "value": "a"}] * 2 + [{"from": "gpt", "value": "b"}]},
         "roles_do_not_alternate"),
        ({"conversations": [{"from": "human"}]}, "not_a_turn"),
        (llava("\ud83d"), "invalid_text"),
        ("text", "not_an_object"),
    ]  # fmt: skip
    rows = [row for row, _ in bad]
    told = convert("llava", [llava("good"), *rows], "--images", str(tmp_path / "images"))
    assert told["samples"] == 1 and told["rows"] == len(bad) + 1
    assert rejected(tmp_path / "out") == [(number, reason) for number, (_, reason) in enumerate(bad, start=1)]
    assert sum(told["rejected"].values()) == len(bad)


def test_sharegpt_s_variants_are_one_conversation(convert, tmp_path):
    named = [
        {"from": "human", "value": "a"},
        {"from": "chatgpt", "value": "b"},
        {"from": "user", "value": "unanswered"},
    ]
    roles = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    rows = [{"conversations": named}, {"conversation": named}, {"items": named}, {"conversations": roles}]
    convert("sharegpt", rows)
    assert [each.messages for each in read(tmp_path / "out")] == [roles] * 4


def test_alpaca(convert, tmp_path):
    rows = [
        {"instruction": "Add.", "input": "1 2", "output": "3"},
        {"instruction": "Say a.", "input": "", "output": "a"},
    ]
    convert("alpaca", rows)
    assert questions(tmp_path / "out") == ["Add.\n\n1 2", "Say a."]


def test_openai_s_messages_with_parts(convert, pictures, tmp_path):
    inline = "data:image/png;base64," + base64.b64encode(pictures["sub/b.png"]).decode()

    def asked(*parts: dict[str, Any], **more: Any) -> dict[str, Any]:
        answer = {"role": "assistant", "content": [{"type": "text", "text": "yes"}]}
        return {
            "messages": [{"role": "system", "content": "s"}, {"role": "user", "content": list(parts)}, answer],
            **more,
        }

    text = {"type": "text", "text": "What?"}
    rows = [
        asked({"type": "image_url", "image_url": {"url": inline, "detail": "low"}}, text),
        asked(text, {"type": "image_url", "image_url": {"url": "a.jpg"}}),
        asked(text, {"type": "image"}, images=["a.jpg"]),
        {
            "messages": [{"role": "user", "content": "<image>plain"}, {"role": "assistant", "content": "x"}],
            "images": ["a.jpg"],
        },
        asked({"type": "image_url", "image_url": {"url": "https://example.org/a.jpg"}}),
        asked({"type": "audio"}),
        asked({"type": "image_url", "image_url": {"url": "data:image/png;base64,???"}}),
        {
            "messages": [
                {"role": "user", "content": "a"},
                {"role": "assistant", "content": [{"type": "image", "image": "a.jpg"}]},
            ]
        },
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": None}]},
    ]
    convert("messages", rows, "--images", str(tmp_path / "images"))
    assert [each.messages[-2]["content"] for each in read(tmp_path / "out")] == [
        "<image>\nWhat?", "What?\n<image>", "What?\n<image>", "<image>plain",
    ]  # fmt: skip
    a, b = pictures["a.jpg"], pictures["sub/b.png"]
    assert [each.images for each in read(tmp_path / "out")] == [[b], [a], [a], [a]]
    assert rejected(tmp_path / "out") == [
        (4, "remote_image"), (5, "unknown_part"), (6, "missing_image"), (7, "image_in_answer"), (8, "not_a_turn"),
    ]  # fmt: skip


def test_parquet_with_images_in_any_layout(convert, pictures, tmp_path):
    a, b = ({"bytes": pictures[name], "path": name} for name in ("a.jpg", "sub/b.png"))
    turns = [{"role": "user", "content": "<image>a"}, {"role": "assistant", "content": "b"}]
    tables = {
        "messages": [{"images": [a, b], "messages": [{**turns[0], "content": "<image><image>a"}, turns[1]]}],
        "cauldron": [{"images": [a], "texts": [{"user": "Q", "assistant": "A", "source": "s"}] * 2}],
        "captions": [
            {"picture": a, "caption": "a dog"},
            {"picture": b, "caption": ""},
            {"picture": None, "caption": "c"},
        ],
        "unknown": [{"picture": a, "label": 3}],
    }
    (tmp_path / "hf" / "train").mkdir(parents=True)
    for name, rows in tables.items():
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / "hf" / "train" / f"{name}.parquet")
    (tmp_path / "hf" / "train" / "zz.parquet").write_bytes(b"PAR1 no")
    told = convert("hf", tmp_path / "hf")
    assert told["rejected"] == {"no_caption": 1, "image_count": 1, "missing_column": 1, "corrupt_parquet": 1}
    found = {tuple(message["content"] for message in each.messages): each.images for each in read(tmp_path / "out")}
    assert found == {
        ("<image>", "a dog"): [a["bytes"]],
        ("<image>\nQ", "A", "Q", "A"): [a["bytes"]],
        ("<image><image>a", "b"): [a["bytes"], b["bytes"]],
    }


def test_img2dataset_s_tars(convert, tools, tmp_path):
    data = tools.encode(tools.photo(1))
    samples = [tools.raw("0001", data, caption="a dog"), tools.raw("0002", b"x"), tools.raw("0003", data, caption=None),
               tools.raw("0004", data, meta=b'{"similarity": 1e999}'), tools.raw("0005", data, meta=b"{")]  # fmt: skip
    tools.write_shard(tmp_path / "raw", "00000", samples)
    told = convert("captions", tmp_path / "raw")
    assert told["rejected"] == {"image_not_an_image": 1, "no_caption": 1, "not_storable": 1}
    first, last = read(tmp_path / "out")
    assert first.messages == [{"role": "user", "content": "<image>"}, {"role": "assistant", "content": "a dog"}]
    assert first.images == last.images == [data]
    told = json.loads(ShardReader(tmp_path / "out").read(0).fields["json"])
    assert told["source"]["metadata"]["url"] == "https://example.org/0001"


def test_a_list_and_lines_in_all_files_of_a_folder(convert, tmp_path):
    (tmp_path / "in" / "b").mkdir(parents=True)
    (tmp_path / "in" / "a.jsonl").write_bytes(
        b"".join(json.dumps(llava(q)).encode() + b"\r\n" for q in "12") + b"{oops\n"
    )
    (tmp_path / "in" / "b" / "c.json").write_text(json.dumps([llava("3")])[:-1] + ", {cut")
    told = convert("sharegpt", tmp_path / "in")
    assert questions(tmp_path / "out") == ["1", "2", "3"]
    assert told["rejected"] == {"invalid_json": 1, "broken_list": 1}
    (tmp_path / "in" / "b" / "c.jsonl").write_text("")
    assert "convert them one by one" in convert("sharegpt", tmp_path / "in", out="other", code=2)["error"]["fix"]


def test_a_conversation_has_the_shape_that_curation_exports(convert, curate, tmp_path):
    row = {"id": 4, "messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    (tmp_path / "raw" / "set").mkdir(parents=True)
    (tmp_path / "raw" / "set" / "part.jsonl").write_text(json.dumps(row) + "\n")
    source = {"kind": "text", "path": str(tmp_path / "raw"), "sets": {"set": "messages"}}
    executor = {"name": "in_process", "workers": 0}
    curate(
        {
            "name": "t",
            "seed": 1,
            "curation": {"source": source, "stages": {"text_ingest": {}, "text_export": {}}, "executor": executor},
        }
    )
    convert("messages", tmp_path / "raw" / "set")
    [exported], [converted] = (documents(tmp_path / place) for place in ("run/export", "out"))
    assert exported.keys() == converted.keys() and exported["source"].keys() == converted["source"].keys()
    assert exported | {"source": 0} == converted | {"source": 0}


def documents(folder: Path) -> list[dict[str, Any]]:
    reader = ShardReader(folder)
    return [json.loads(reader.read(number).fields["json"]) for number in range(len(reader))]


TEXTS = st.lists(st.sampled_from(["<image>", "a", "\n", " "]), max_size=4).map("".join)
TURNS = st.lists(TEXTS, min_size=1, max_size=4)


@given(TURNS, st.integers(0, 4), st.booleans())
def test_marks_are_as_many_as_images_and_no_word_is_lost(texts: Sequence[str], images: int, first: bool) -> None:
    turns = [(("user", "assistant")[number % 2], text) for number, text in enumerate(texts)]
    marks = sum(text.count("<image>") for text in texts[::2])
    try:
        placed = with_marks(turns, images, first)
    except BadRow as error:
        assert error.reason == "image_count" and marks not in (0, images) or (marks and not images)
        return
    assert sum(text.count("<image>") for role, text in placed if role == "user") == images
    for (_, before), (_, after) in zip(turns, placed, strict=True):
        assert after.replace("<image>", "").split() == before.replace("<image>", "").split()
    assert [text for role, text in placed if role == "assistant"] == list(texts[1::2])
    assert marks or not images or placed[0][1].startswith("<image>\n" * images)


WORDS = ["messages", "conversations", "role", "content", "image", "images", "type", "text", "image_url"]
NAMES = st.sampled_from(WORDS)
SCALARS = st.none() | st.text(max_size=4) | st.floats() | st.sampled_from(["<image>", "user", "a.jpg", "text"])
ROWS = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=4), max_leaves=12
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
@given(ROWS)
def test_whatever_a_row_is_it_costs_itself_alone(convert, tmp_path_factory, row):
    folder = tmp_path_factory.mktemp("any")
    good = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    (folder / "set.jsonl").write_text(json.dumps(row).replace("\n", " ") + "\n" + json.dumps(good) + "\n")
    told = convert("messages", folder / "set.jsonl", out=str(folder / "out"))
    assert told["rows"] == 2 and told["samples"] >= 1

"""What counts as one item, what costs one item, and how lmms-eval's own evaluator sees the same answers."""

from __future__ import annotations

import socket
from io import BytesIO

import pytest
from PIL import Image, ImageFile

from megavlm.megatron_mm.evaluation.benchmarks.protocols import find_protocol
from megavlm.megatron_mm.evaluation.benchmarks.table import find_benchmark
from megavlm.megatron_mm.evaluation.harness import lmms_library
from megavlm.megatron_mm.evaluation.harness.lmms_model import engine_model
from megavlm.megatron_mm.evaluation.harness.lmms_task import load_task
from megavlm.megatron_mm.evaluation.harness.vision import evaluate_vision


def run(engine, name, data, protocol="nvlm", **more):
    return evaluate_vision(engine, find_benchmark(name), data, find_protocol(protocol), **more)


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """Nothing may be asked of the network, whatever a task would like."""

    def refuse(*_: object) -> None:
        raise AssertionError("a connection was tried")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def test_mme_counts_an_image_with_both_its_questions(tmp_path, table_engine, parquet, shot):
    asked = [("a.png", "count", "Yes"), ("a.png", "count", "No"), ("b.png", "count", "Yes"), ("b.png", "count", "No")]
    asked += [("c.png", "code_reasoning", "Yes"), ("c.png", "code_reasoning", "No")]
    rows = [
        {"question_id": name, "image": shot(name), "question": f"Q{number}? Please answer yes or no.", "answer": answer}
        | {"category": category}
        for number, (name, category, answer) in enumerate(asked)
    ]
    parquet(tmp_path / "lmms-lab-encoder" / "MME", "data/test-00000-of-00001.parquet", rows)
    engine = table_engine({"Q0": "Yes.", "Q1": "no", "Q2": "yes", "Q3": "yes", "Q4": "maybe", "Q5": "yes"})
    found = run(engine, "mme", tmp_path)
    assert [item.id for item in found] == ["mme/a.png", "mme/b.png", "mme/c.png"]
    assert [item.value for item in found] == [1.0, 0.25, 0.0]  # (100 + 100), (50 + 0), 0 of 200 points
    assert [item.kind for item in found] == ["count", "count", "code_reasoning"]
    assert found[1].answer == "yes | yes" and found[1].expected == "Yes | No"
    assert engine.asked[0].messages[-1]["content"] == "<image>\nQ0?\nAnswer the question using a single word or phrase."


def test_mmbench_wants_every_copy_of_a_question_right(tmp_path, table_engine, parquet, shot):
    def row(index, question, options, answer):
        letters = dict(zip("ABCD", [*options, *["nan"] * (4 - len(options))], strict=True))
        told = {"index": index, "question": question, "hint": "nan", "answer": answer, "image": shot(question)}
        return told | letters | {"category": "ocr", "source": "s", "L2-category": "fine", "comment": "", "split": "dev"}

    rows = [row(5, "first one", ["cat", "dog"], "A"), row(1000005, "turned one", ["dog", "cat"], "B")]
    rows += [row(7, "third one", ["red", "blue"], "A"), row(1000007, "fourth one", ["blue", "red"], "B")]
    parquet(tmp_path / "lmms-lab-encoder" / "MMBench", "en/dev-00000-of-00001.parquet", rows)
    engine = table_engine({"first": "A", "turned": "The answer is B.", "third": "red", "fourth": "A. blue"})
    found = run(engine, "mmbench", tmp_path)
    assert [(item.id, item.correct, item.kind) for item in found] == [
        ("mmbench_en_dev_static/5", True, "ocr"),
        ("mmbench_en_dev_static/7", False, "ocr"),
    ]
    wanted = "Answer with the option's letter from the given choices directly."
    text = engine.asked[0].messages[-1]["content"]
    assert text == f"<image>\nfirst one There are several options:\nA. cat\nB. dog\n{wanted}"


def test_seed_takes_images_only_and_gqa_joins_its_images(tmp_path, table_engine, parquet, shot):
    def row(number, kind):
        options = {f"choice_{letter}": letter for letter in "abcd"}
        told = {"question": f"Q{number}", "answer": "B", "data_type": kind, "question_id": str(number)}
        return told | options | {"question_type_id": 3, "image": [shot("a")]}

    hub = tmp_path / "lmms-lab-encoder"
    rows = [row(1, "video"), row(2, "image"), row(3, "image")]
    parquet(hub / "SEED-Bench", "data/test-00000-of-00001.parquet", rows)
    found = run(table_engine({"Q2": "B. b", "Q3": "a"}), "seed", tmp_path)
    assert [(item.id, item.correct, item.kind) for item in found] == [
        ("seedbench/1", True, "3"),
        ("seedbench/2", False, "3"),
    ]
    asked = [{"id": "1", "imageId": "n2", "question": "what is it?", "answer": "dog"}]
    parquet(hub / "GQA", "testdev_balanced_instructions/testdev-00000-of-00001.parquet", asked)
    images = [{"id": "n1", "image": shot("left")}, {"id": "n2", "image": shot("right")}]
    parquet(hub / "GQA", "testdev_balanced_images/testdev-00000-of-00001.parquet", images)
    engine = table_engine({"what is it": "Dog."})
    [item] = run(engine, "gqa", tmp_path, "llava")
    assert item.correct and item.expected == "dog"
    shown, stored = Image.open(BytesIO(engine.asked[0].images[0])), Image.open(BytesIO(shot("right")["bytes"]))
    assert shown.tobytes() == stored.convert("RGB").tobytes()


def test_mathvista_is_extracted_by_rules_without_a_judge(tmp_path, table_engine, parquet, shot):
    def row(pid, query, kind, answer, choices=None, answer_type="text", precision=None):
        told = {"pid": pid, "question": query, "query": f"Hint: Please answer.\nQuestion: {query}", "answer": answer}
        told |= {"choices": choices or [], "question_type": kind, "answer_type": answer_type, "unit": ""}
        return told | {"precision": precision, "metadata": {"task": "geometry"}, "decoded_image": shot(pid)}

    rows = [
        row("1", "how many", "free_form", "14", answer_type="integer"),
        row("2", "how long", "free_form", "1.45", answer_type="float", precision=2.0),
        row("3", "which one", "multi_choice", "8/11", ["3/11", "8/11"]),
        row("4", "which side", "multi_choice", "left", ["left", "right"]),
    ]
    folder = tmp_path / "AI4Math" / "MathVista"
    parquet(folder, "data/testmini-00000-of-00001.parquet", rows, images=("decoded_image",))
    engine = table_engine(
        {"many": "There are 14 of them", "long": "1.452 m", "which one": "It is (B)", "side": "the right"}
    )
    found = run(engine, "mathvista", tmp_path)
    assert [item.correct for item in found] == [True, True, True, False]
    assert found[0].kind == "geometry"
    assert engine.asked[0].messages[0]["content"].startswith("You are math expert.")
    assert engine.asked[0].messages[-1]["content"] == "<image>\nPlease answer.\nQuestion: how many"
    engine = table_engine({"": "14"})
    run(engine, "mathvista", tmp_path, "eagle", limit=1)
    assert engine.asked[0].messages[-1]["content"] == "<image>\nHint: Please answer.\nQuestion: how many"


def test_vqav2_vizwiz_and_realworldqa(tmp_path, table_engine, parquet, shot):
    hub = tmp_path / "lmms-lab-encoder"
    given = [
        {"answer": text, "answer_confidence": "yes", "answer_id": n}
        for n, text in enumerate(["red"] * 2 + ["Blue"] * 8)
    ]
    same = [{"answer": "Yes", "answer_confidence": "yes", "answer_id": n} for n in range(10)]
    rows = [
        {"question_id": n, "question": question, "image": shot("v"), "answers": answers, "answer_type": "other"}
        | {"multiple_choice_answer": "x"}
        for n, (question, answers) in enumerate([("colour?", given), ("is it?", same)])
    ]
    parquet(hub / "VQAv2", "data/validation-00000-of-00001.parquet", rows)
    found = run(table_engine({"colour": "red", "is it": "yes"}), "vqav2", tmp_path)
    assert [item.value for item in found] == pytest.approx([0.6, 0.0])  # all agree: nothing is normalised
    rows = [
        {"question_id": "V1", "question": "what is this", "image": shot("z"), "answers": ["can"] * 10, "category": "c"}
    ]
    parquet(hub / "VizWiz-VQA", "data/val-00000-of-00001.parquet", rows)
    [item] = run(table_engine({"this": "a can."}), "vizwiz", tmp_path, "llava")
    assert (item.value, item.kind) == (1.0, "c")
    rows = [{"image": shot("r"), "question": f"Which way {n}?\nA. left\nB. right", "answer": "B"} for n in range(2)]
    parquet(hub / "RealWorldQA", "data/test-00000-of-00001.parquet", rows)
    found = run(table_engine({"way 0": "B. right", "way 1": "A"}), "realworldqa", tmp_path)
    assert [item.correct for item in found] == [True, False]


def test_a_bad_item_costs_one_item_and_is_told(tmp_path, table_engine, parquet, shot):
    whole = shot("a")
    cut = {"bytes": whole["bytes"][:80], "path": "cut.png"}
    rows = [
        {"type": "human_test", "question": question, "answer": answer, "image": image}
        for question, answer, image in [
            ("first", "1", {"bytes": b"no picture", "path": "x"}),
            ("second", "2", whole),
            ("third", "3", cut),
            ("fourth is too long", "4", whole),
            ("fifth <image> marks", "5", whole),
            ("sixth", "6", {"bytes": None, "path": None}),
            ("seventh", None, whole),
        ]
    ]
    parquet(tmp_path / "lmms-lab-encoder" / "ChartQA", "data/test-00000-of-00001.parquet", rows)
    engine = table_engine({"second": "2", "fifth": "5", "seventh": "7"})
    before = ImageFile.LOAD_TRUNCATED_IMAGES
    found = run(engine, "chartqa", tmp_path)
    assert [item.correct for item in found] == [False, True, False, False, True, False, False]
    assert [item.problem.split(":")[0] for item in found] == [
        "cannot be shown", "", "cannot be shown", "9000 tokens do not fit into 4096", "", "cannot be shown",
        "cannot be scored",
    ]  # fmt: skip
    assert [item.expected for item in found] == ["1", "2", "3", "4", "5", "6", "None"]  # asked, all the same
    assert "UnidentifiedImageError" in found[0].problem
    assert [item.kind for item in found] == ["human_test"] * 7
    assert ImageFile.LOAD_TRUNCATED_IMAGES == before is False


def test_lmms_evals_own_evaluator_says_the_same(tmp_path, table_engine, parquet, shot, capsys):
    answers = [("first", "1"), ("second", "20"), ("third", "x"), ("fourth", "40%")]
    rows = [{"type": "human_test", "question": name, "answer": answer, "image": shot(name)} for name, answer in answers]
    parquet(tmp_path / "lmms-lab-encoder" / "ChartQA", "data/test-00000-of-00001.parquet", rows)
    benchmark, asked = find_benchmark("chartqa"), find_protocol("nvlm").of(find_benchmark("chartqa"))
    engine = table_engine({"first": "1", "second": "20.5", "third": "y", "fourth": "0.5"})
    found = run(engine, "chartqa", tmp_path)
    task, model = load_task(benchmark, tmp_path, asked), engine_model(engine, asked)
    model.task_dict["chartqa"] = task.dataset
    told = lmms_library.load("evaluator").evaluate(lm=model, task_dict={"chartqa": task}, bootstrap_iters=0)
    assert told["samples"]["chartqa"][1]["relaxed_overall"] == 1.0
    assert told["results"]["chartqa"]["relaxed_overall,none"] == sum(item.value for item in found) / 4 == 0.5
    assert engine.asked[:4] == engine.asked[4:]

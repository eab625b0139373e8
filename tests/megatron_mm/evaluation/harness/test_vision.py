"""Picture benchmarks end to end: snapshots in published columns, lmms-eval's tasks, values worked out by hand."""

from __future__ import annotations

import io

import pytest
from PIL import Image

from megavlm.megatron_mm.evaluation.benchmarks.protocols import find_protocol
from megavlm.megatron_mm.evaluation.benchmarks.table import find_benchmark
from megavlm.megatron_mm.evaluation.harness.vision import evaluate_vision
from megavlm.platform.errors import ConfigError, InputError

LETTER = "Answer with the option's letter from the given choices directly."


@pytest.fixture(scope="module")
def data(tmp_path_factory, parquet, shot):
    """DATA with a handful of items of eight benchmarks and more, in the columns that the hub has."""
    root = tmp_path_factory.mktemp("data")
    hub = root / "lmms-lab-encoder"

    def doc(number, question, answers, kinds=("form",)):
        row = {"questionId": str(number), "question": question, "question_types": list(kinds), "image": shot(question)}
        return row | {"docId": number, "answers": answers, "data_split": "val"}

    docs = [
        doc(1, "what is the total?", ["12.50 dollars", "12.50"]),
        doc(2, "who signed?", ["Ann Lee"]),
        doc(3, "which year?", ["1999"]),
    ]
    parquet(hub / "DocVQA", "DocVQA/validation-00000-of-00002.parquet", docs[:2])
    parquet(hub / "DocVQA", "DocVQA/validation-00001-of-00002.parquet", docs[2:])
    parquet(hub / "DocVQA", "InfographicVQA/validation-00000-of-00001.parquet", [doc(9, "how many cups?", ["8 cups"])])
    charts = [
        ("what share?", "40%", "human_test"),
        ("how tall?", "200", "augmented_test"),
        ("who leads?", "Peru", "human_test"),
    ]
    parquet(
        hub / "ChartQA",
        "data/test-00000-of-00001.parquet",
        [
            {"type": kind, "question": question, "answer": answer, "image": shot(question)}
            for question, answer, kind in charts
        ],
    )
    texts = [("what brand?", ["coke"] * 2 + ["coca cola"] * 8, 7), ("what number?", ["two"] * 10, 8)]
    parquet(
        hub / "textvqa",
        "data/validation-00000-of-00001.parquet",
        [
            {"image_id": f"i{number}", "question_id": number, "question": question, "answers": answers}
            | {"ocr_tokens": ["COKE"], "image": shot(question)}
            for question, answers, number in texts
        ],
    )
    words = [
        ("what is written?", ["CENTRE"], "IIIT5K", "Regular Text Recognition"),
        ("which formula?", ["x ^ { 2 }"], "HME100k", "Handwritten Mathematical Expression Recognition"),
        ("what width?", ["12"], "ctw", "Artistic Text Recognition"),
    ]
    parquet(
        root / "echo840" / "OCRBench",
        "data/test-00000-of-00001.parquet",
        [
            {"dataset": of, "question": question, "question_type": kind, "answer": answer, "image": shot(question)}
            for question, answer, of, kind in words
        ],
    )
    parquet(
        hub / "POPE",
        "data/test-00000-of-00001.parquet",
        [
            {"id": str(number), "question_id": str(number), "question": f"Is there a {thing}?", "answer": answer}
            | {"image_source": "coco", "image": shot(thing), "category": kind}
            for number, (thing, answer, kind) in enumerate([("cat", "yes", "random"), ("car", "no", "popular")])
        ],
    )
    science = [
        ("which is a gas?", ["air", "iron"], 0, "", "natural science"),
        ("which pole?", ["N", "S"], 1, "a magnet", "x"),
    ]
    parquet(
        hub / "ScienceQA",
        "ScienceQA-IMG/test-00000-of-00001.parquet",
        [
            {"image": shot(question), "question": question, "choices": choices, "answer": right, "hint": hint}
            | {"subject": subject, "topic": "physics"}
            for question, choices, right, hint, subject in science
        ],
    )
    empty = {"bytes": None, "path": None}
    parquet(
        hub / "MMMU",
        "data/validation-00000-of-00001.parquet",
        [
            {
                "id": "validation_Math_1",
                "question": "Compare <image 1> with <image 2>: which?",
                "options": "['left', 'right']",
            }
            | {"question_type": "multiple-choice", "answer": "B", "image_1": shot("a"), "image_2": shot("b")},
            {"id": "validation_Art_2", "question": "How old is <image 1>?", "options": "[]"}
            | {"question_type": "open", "answer": "120", "image_1": shot("c"), "image_2": empty},
        ],
        images=("image_1", "image_2"),
    )
    parquet(
        hub / "ai2d",
        "data/test-00000-of-00001.parquet",
        [
            {"question": question, "options": ["leaf", "root"], "answer": right, "image": shot(question)}
            for question, right in [("what is A?", "0"), ("what is B?", "1"), ("what is C?", "1")]
        ],
    )
    return root


@pytest.fixture(autouse=True)
def nothing_printed(capfd):
    """Standard output belongs to whoever asked, who may want JSON there and nothing else."""
    yield
    assert capfd.readouterr().out == ""


def run(engine, name, data, protocol="nvlm", **more):
    return evaluate_vision(engine, find_benchmark(name), data, find_protocol(protocol), **more)


def test_docvqa_is_asked_in_the_protocols_words_and_scored_by_anls(data, table_engine):
    engine = table_engine({"total": "12.50", "signed": "Ann L.", "year": "no idea"})
    found = run(engine, "docvqa", data)
    assert [item.id for item in found] == ["docvqa_val/0", "docvqa_val/1", "docvqa_val/2"]
    assert [item.value for item in found] == pytest.approx([1.0, 1 - 2 / 7, 0.0])  # "ann l." -> "ann lee": 2 of 7
    assert [item.correct for item in found] == [True, False, False]
    assert [item.kind for item in found] == ["form"] * 3
    ask = engine.asked[1]
    assert ask.messages[0] == {"role": "system", "content": "Follow the user's instruction and answer questions."}
    wanted = "<image>\nwho signed?\nAnswer the question using a single word, phrase, or number."
    assert ask.messages[1] == {"role": "user", "content": wanted}
    assert ask.max_new_tokens == 1024 and ask.stop == ()
    assert Image.open(io.BytesIO(ask.images[0])).size == (120, 40)
    assert found[1].answer == "Ann L." and found[1].expected == "Ann Lee"


def test_infovqa_reads_its_own_configuration_of_the_same_repository(data, table_engine):
    [item] = run(table_engine({"cups": "8 cup"}), "infovqa", data)
    assert item.value == pytest.approx(1 - 1 / 6)


def test_chartqa_is_relaxed_and_llava_asks_it_without_a_system(data, table_engine):
    engine = table_engine({"share": "0.41", "tall": "211", "leads": "peru"})
    found = run(engine, "chartqa", data, "llava")
    assert [item.value for item in found] == [1.0, 0.0, 1.0]  # 2.5 % off; 5.5 % off; letters' case
    assert [item.kind for item in found] == ["human_test", "augmented_test", "human_test"]
    assert [message["role"] for message in engine.asked[0].messages] == ["user"]
    assert engine.asked[0].max_new_tokens == 128
    assert found[0].score is None


def test_textvqa_counts_annotators_and_eagle_shows_the_ocr_tokens(data, table_engine):
    engine = table_engine({"brand": "Coke.", "number": "2"})
    found = run(engine, "textvqa", data, "eagle")
    # Two of ten said coke: (2 x 1/3 + 8 x 2/3) / 10. "two" is normalised to 2.
    assert [item.value for item in found] == pytest.approx([(2 / 3 + 8 * 2 / 3) / 10, 1.0])
    assert engine.asked[0].messages[-1]["content"].startswith("<image>\nWhat brand?\nReference OCR token: COKE\nAnswer")
    assert found[1].expected == ", ".join(["two"] * 10)


def test_ocrbench_by_the_official_rule(data, table_engine):
    found = run(table_engine({"written": "the Centre!", "formula": "x^{2}", "width": "１２"}), "ocrbench", data)
    assert [item.correct for item in found] == [True, True, False]  # full-width digits are others, officially
    assert found[1].kind == "Handwritten Mathematical Expression Recognition"


def test_pope_scienceqa_and_ai2d(data, table_engine):
    found = run(table_engine({"cat": "Yes", "car": "yes"}), "pope", data)
    assert [(item.correct, item.kind) for item in found] == [(True, "random"), (False, "popular")]
    engine = table_engine({"gas": "A", "pole": "A. N"})
    found = run(engine, "scienceqa", data, "llava")
    assert [item.correct for item in found] == [True, False]
    assert engine.asked[1].messages[-1]["content"] == f"<image>\nContext: a magnet\nwhich pole?\nA. N\nB. S\n{LETTER}"
    found = run(table_engine({"is A": "A.", "is B": "A", "is C": " B. root"}), "ai2d", data)
    assert [(item.correct, item.expected) for item in found] == [(True, "A"), (False, "B"), (True, "B")]


def test_mmmu_shows_several_images_and_takes_open_answers(data, table_engine):
    engine = table_engine({"Compare": "The answer is (B).", "How old": "It is 120 years"})
    found = run(engine, "mmmu", data)
    assert [(item.correct, item.kind) for item in found] == [(True, "Math"), (True, "Art")]
    assert [len(ask.images) for ask in engine.asked] == [2, 1]
    first, second = (ask.messages[-1]["content"] for ask in engine.asked)
    assert first == f"<image>\n<image>\nCompare <image 1> with <image 2>: which?\nA. left\nB. right\n\n{LETTER}"
    assert second.endswith("\n\nAnswer the question using a single word or phrase.")


def test_a_limit_takes_the_first_items_and_progress_is_told(data, table_engine):
    told = []
    found = run(table_engine({"total": "12.50"}), "docvqa", data, limit=1, alive=lambda: told.append(1))
    assert len(found) == 1 and told


def test_missing_data_are_an_error_with_the_line_to_run(data, table_engine):
    with pytest.raises(InputError) as told:
        run(table_engine({}), "vqav2", data)
    line = f"hf download --repo-type dataset lmms-lab-encoder/VQAv2 --local-dir {data}/lmms-lab-encoder/VQAv2"
    assert told.value.fix == line


def test_a_text_that_the_task_has_no_place_for_is_refused(data, table_engine, parquet, shot):
    protocol = find_protocol("nvlm")
    asked = protocol.benchmarks["seed"].model_copy(update={"after": "Be brief."})
    other = protocol.model_copy(update={"benchmarks": protocol.benchmarks | {"seed": asked}})
    row = {"question": "q", "choice_a": "a", "choice_b": "b", "choice_c": "c", "choice_d": "d", "answer": "A"}
    row |= {"data_type": "image", "question_id": "1", "image": [shot("a")]}
    parquet(data / "lmms-lab-encoder" / "SEED-Bench", "data/test-00000-of-00001.parquet", [row])
    with pytest.raises(ConfigError, match="has no place for post_prompt"):
        evaluate_vision(table_engine({}), find_benchmark("seed"), data, other)

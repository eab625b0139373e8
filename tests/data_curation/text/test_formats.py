"""Every public layout against the conversation that a person reads in the row, and against rows that are none."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megavlm.data_curation.text.formats import FORMATS
from megavlm.data_curation.text.sample import BadRow, TextSample

QA = [("user", "What is 2 + 2?"), ("assistant", "4")]
SYSTEM = ("system", "Be brief.")
HUMAN, GPT = {"from": "human", "value": "What is 2 + 2?"}, {"from": "gpt", "value": "4"}

# format, row, turns, id, source
ROWS = [
    ("sharegpt", {"id": "QWJ_0", "conversations": [HUMAN, GPT]}, QA, "QWJ_0", ""),
    (
        "sharegpt",
        {"id": "x_1", "conversations": [{"from": "system", "value": "Be brief."}, HUMAN, GPT, HUMAN]},
        [SYSTEM, *QA],
        "x_1",
        "",
    ),
    (
        "sharegpt",
        {"conversations": [{"from": "user", "value": "Hi"}, {"from": "chatgpt", "value": " Hello \n"}]},
        [("user", "Hi"), ("assistant", "Hello")],
        None,
        "",
    ),
    (
        "slim_orca",
        {"conversations": [{"from": "system", "value": "Be brief.", "weight": None}, HUMAN, GPT | {"weight": 1.0}]},
        [SYSTEM, *QA],
        None,
        "",
    ),
    ("slim_orca", {"conversations": [{"from": "system", "value": "  "}, HUMAN, GPT]}, QA, None, ""),
    ("evol_instruct", {"instruction": "What is 2 + 2?", "output": "4"}, QA, None, ""),
    ("evol_instruct", {"idx": "CpAzaxs", "conversations": [HUMAN, GPT]}, QA, "CpAzaxs", ""),
    (
        "gpteacher",
        {"instruction": "Add them.", "input": "2, 2", "response": "4"},
        [("user", "Add them.\n\n2, 2"), ("assistant", "4")],
        None,
        "",
    ),
    ("alpaca_gpt4", {"instruction": "What is 2 + 2?", "input": "", "output": "4", "text": "Below is"}, QA, None, ""),
    ("alpaca_gpt4", {"instruction": "What is 2 + 2?", "input": None, "output": "4"}, QA, None, ""),
    (
        "ultra_interact",
        {"task": "Math_CoT", "dataset": "gsm8k", "instruction": "What is 2 + 2?", "response": "4", "id": "7"}
        | {"parent_id": "7"},
        QA,
        "7",
        "gsm8k",
    ),
    (
        "ultra_interact",
        {"dataset": "MATH", "id": 8, "chosen": "4", "rejected": "5"}
        | {
            "trajectory": [
                {"from": "user", "value": "What is 2 + 2?"},
                {"from": "assistant", "value": "5?"},
                {"from": "user", "value": "Observation: no."},
            ]
        },
        [("user", "What is 2 + 2?"), ("assistant", "5?"), ("user", "Observation: no."), ("assistant", "4")],
        "8",
        "MATH",
    ),
    ("orca_math", {"question": "What is 2 + 2?", "answer": "4"}, QA, None, ""),
    (
        "math_instruct",
        {"source": "data/CoT/gsm_train.json", "instruction": "What is 2 + 2?", "output": "4"},
        QA,
        None,
        "data/CoT/gsm_train.json",
    ),
    (
        "metamath",
        {"type": "GSM_Rephrased", "query": "What is 2 + 2?", "original_question": "2 + 2?", "response": "4"},
        QA,
        None,
        "GSM_Rephrased",
    ),
    (
        "magicoder",
        {"lang": "python", "raw_index": 12, "index": 3, "seed": "x", "problem": "What is 2 + 2?", "solution": "4"},
        QA,
        "12",
        "python",
    ),
    ("magicoder", {"instruction": "What is 2 + 2?", "response": "4"}, QA, None, ""),
    ("wizard_coder", {"instruction": "What is 2 + 2?", "output": "4"}, QA, None, ""),
    ("glaive", {"question": "What is 2 + 2?", "answer": "4"}, QA, None, ""),
    (
        "glaive",
        {
            "system": "SYSTEM: You may call\n{ \"name\": \"add\" }",
            "chat": "USER: Add 2, 2.\n\n\nASSISTANT: <functioncall> {\"name\": \"add\"} <|endoftext|>\n\n\n"
            "FUNCTION RESPONSE: {\"sum\": 4}\n\n\nASSISTANT: It is 4. <|endoftext|>\n\n\n",
        },
        [
            ("system", "You may call\n{ \"name\": \"add\" }"),
            ("user", "Add 2, 2."),
            ("assistant", "<functioncall> {\"name\": \"add\"}"),
            ("user", "FUNCTION RESPONSE: {\"sum\": 4}"),
            ("assistant", "It is 4."),
        ],
        None,
        "",
    ),
    (
        "glaive",
        {"sample": "SYSTEM: Be brief.\nUSER: Hi\nASSISTANT: Hello\nASSISTANT: You?\n"},
        [SYSTEM, ("user", "Hi"), ("assistant", "Hello\n\nYou?")],
        None,
        "",
    ),
    ("messages", {"id": 3, "messages": [{"role": r, "content": c} for r, c in QA]}, QA, "3", ""),
]  # fmt: skip

BAD = [
    ("sharegpt", {"conversations": [GPT, HUMAN]}, "no_question"),
    ("sharegpt", {"conversations": []}, "no_question"),
    ("sharegpt", {"conversations": [HUMAN]}, "no_answer"),
    ("sharegpt", {"conversations": [HUMAN, HUMAN, GPT]}, "roles_do_not_alternate"),
    ("sharegpt", {"conversations": [HUMAN, GPT, {"from": "system", "value": "x"}]}, "roles_do_not_alternate"),
    ("sharegpt", {"conversations": [HUMAN, GPT | {"from": "tool"}]}, "unknown_role"),
    ("sharegpt", {"conversations": [HUMAN, GPT | {"value": " \n"}]}, "empty_turn"),
    ("sharegpt", {"conversations": [HUMAN, GPT | {"value": None}]}, "not_a_turn"),
    ("sharegpt", {"conversations": [HUMAN, "4"]}, "not_a_turn"),
    ("sharegpt", {"conversations": [HUMAN, GPT | {"value": "\ud800"}]}, "invalid_text"),
    ("sharegpt", {"conversations": "none"}, "missing_column"),
    ("sharegpt", {"items": []}, "missing_column"),
    ("slim_orca", {"conversations": [HUMAN, GPT, HUMAN]}, "no_answer"),
    ("metamath", {"query": "What?", "response": ""}, "empty_turn"),
    ("metamath", {"query": "What?"}, "missing_column"),
    ("orca_math", {"question": 4, "answer": "4"}, "missing_column"),
    ("alpaca_gpt4", {"instruction": "Add", "input": ["2"], "output": "4"}, "missing_column"),
    ("ultra_interact", {"trajectory": [GPT], "chosen": "4"}, "no_question"),
    ("glaive", {"system": "Be brief.", "chat": "USER: Hi\nASSISTANT: Hello"}, "unknown_role"),
    ("glaive", {"system": "SYSTEM: Be brief.", "chat": "USER: Hi\nASSISTANT: <|endoftext|>"}, "empty_turn"),
    ("messages", {"messages": [{"role": "user", "content": [{"type": "text", "text": "x"}]}]}, "not_a_turn"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "row", "turns", "id", "source"), ROWS)
def test_a_published_row_becomes_its_conversation(name, row, turns, id, source):
    messages = [{"role": role, "content": text} for role, text in turns]
    assert FORMATS.load(name)(row) == TextSample(messages, id, source)


def test_every_format_has_a_row_here():
    assert {name for name, *_ in ROWS} == set(FORMATS)


@pytest.mark.parametrize(("name", "row", "reason"), BAD)
def test_a_row_that_is_no_conversation_is_refused_by_its_reason(name, row, reason):
    with pytest.raises(BadRow) as refused:
        FORMATS.load(name)(row)
    assert refused.value.reason == reason


ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["from", "value", "x"]), inner),
    max_leaves=10,
)
COLUMNS = sorted({column for _, row, *_ in ROWS for column in row})


@given(st.sampled_from(sorted(FORMATS)), st.dictionaries(st.sampled_from(COLUMNS), ANY, max_size=6))
def test_whatever_a_row_holds_it_is_a_sample_or_refused(name, row):
    try:
        sample = FORMATS.load(name)(row)
    except BadRow as bad:
        assert bad.reason.isidentifier() and bad.detail
        return
    roles = [message["role"] for message in sample.messages if message["role"] != "system"]
    assert roles == ["user", "assistant"] * (len(roles) // 2) and roles
    assert all(message["content"].strip() for message in sample.messages)

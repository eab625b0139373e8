"""The shipped tokenizer, and what loading one may and may not do."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megavlm.megatron_mm.data.conversation import Chat
from megavlm.megatron_mm.data.templates.chatml import ChatML
from megavlm.megatron_mm.data.tokenizer import SHIPPED, load_tokenizer
from megavlm.megatron_mm.data.tokenizers.build_mini import build
from megavlm.megatron_mm.injection.inline import Inline
from megavlm.platform.demo.rendering import COLOURS, FRAMES, WEAVES
from megavlm.platform.demo.tasks import QUESTIONS
from megavlm.platform.errors import ConfigError, InputError

MINI = load_tokenizer("mini")


def test_the_committed_file_is_what_the_script_builds() -> None:
    assert build().to_str(pretty=True) + "\n" == (SHIPPED / "mini" / "tokenizer.json").read_text()


def test_mini_has_exactly_512_tokens() -> None:
    assert MINI.vocab_size == 512


@pytest.mark.parametrize("tag", [*(f"<tile_{k}>" for k in range(1, 7)), "<tile_global_thumbnail>"])
def test_a_tile_tag_is_one_token(tag: str) -> None:
    assert len(MINI.encode(tag)) == 1


@pytest.mark.parametrize("word", [*COLOURS, *FRAMES, *WEAVES])
def test_an_answer_of_the_demo_is_one_token(word: str) -> None:
    assert len(MINI.encode(word)) == 1


@pytest.mark.parametrize("question", [question for question, _ in QUESTIONS.values()])
def test_a_question_of_the_demo_is_a_token_a_word(question: str) -> None:
    assert len(MINI.encode(question)) <= len(question.split()) + 1  # the question mark


@given(st.integers(0, 10**9))
def test_digits_stand_alone(number: int) -> None:
    assert len(MINI.encode(str(number))) == len(str(number))


@given(st.text())
def test_text_survives_the_round_trip(text: str) -> None:
    assert MINI.decode(MINI.encode(text)) == text


@given(st.sampled_from(["<|im_end|>", "<|im_start|>", "<|endoftext|>"]), st.text(max_size=5))
def test_no_text_becomes_a_special_token(marker: str, around: str) -> None:
    special = {MINI.id_of(name) for name in ("<|im_end|>", "<|im_start|>", "<|endoftext|>", "<image>")}
    assert not special & set(MINI.encode(around + marker + around))


def test_a_missing_tokenizer_names_the_shipped_ones(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no tokenizer") as raised:
        load_tokenizer(str(tmp_path))
    assert "mini" in str(raised.value)


def test_a_broken_tokenizer_file_is_an_input_error(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text('{"model": 3}')
    with pytest.raises(InputError, match="not a tokenizer.json"):
        load_tokenizer(str(tmp_path))


def test_a_tokenizer_without_a_template_s_token_is_refused_by_name(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models

    Tokenizer(models.BPE()).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ConfigError, match=r"no token '<\|im_start\|>', which template 'chatml' needs"):
        Chat(ChatML(), load_tokenizer(str(tmp_path)), Inline().placement, True, lambda image: 4)


@pytest.mark.parametrize("text", ["{", "[1]", '"text"'])
def test_what_is_no_tokenizer_is_an_input_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "tokenizer.json").write_text(text)
    with pytest.raises(InputError, match="not a tokenizer.json"):
        load_tokenizer(str(tmp_path))


def test_loading_imports_no_torch() -> None:
    code = "import sys; from megavlm.megatron_mm.data.tokenizer import load_tokenizer; load_tokenizer('mini')"
    check = f"{code}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], timeout=60).returncode == 0

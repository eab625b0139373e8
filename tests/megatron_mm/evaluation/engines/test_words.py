"""How a stage writes an answer that is begun, against whole conversations as training writes them."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megavlm.megatron_mm.config import DataConfig, ModelConfig
from megavlm.megatron_mm.data.measure import template
from megavlm.megatron_mm.data.tokenizer import load_tokenizer
from megavlm.megatron_mm.evaluation.engines.words import StageWords, check_marks, whole
from megavlm.platform.errors import InputError

MODEL = ModelConfig.parse({
    "tiling": {"tile": 28},
    "encoder": {
        "name": "internvit", "image_size": 28, "patch_size": 7, "layers": 1, "hidden": 32, "heads": 2, "ffn": 64,
    },
    "connector": {"name": "pixel_shuffle_mlp", "hidden": 64},
    "injection": {"name": "inline"},
    "decoder": {"name": "qwen2", "layers": 1, "hidden": 32, "heads": 4, "kv_heads": 2, "ffn": 64, "vocab": 513},
})  # fmt: skip
TOKENIZER = load_tokenizer("mini")
TEMPLATES: list[dict[str, Any]] = [
    {"name": "chatml"}, {"name": "chatml", "system": "", "learn_newline": True}, {"name": "yi"},
    {"name": "nvlm_pretrain"}, {"name": "plain", "bos": ""},
]  # fmt: skip
WRITTEN = st.text("ab <|im_end|>\n", min_size=1, max_size=12).filter(lambda text: text.strip() == text)


class Spec:
    """What StageWords reads of a stage."""

    def __init__(self, written: dict[str, Any]) -> None:
        self.model, self.data = MODEL, DataConfig(tokenizer="mini", template=written, sets={})

    def tokenizer(self) -> Any:
        return TOKENIZER


@pytest.mark.parametrize("written", TEMPLATES, ids=lambda written: "-".join(map(str, written.values())))
@given(turns=st.lists(WRITTEN, min_size=1, max_size=3), begun=WRITTEN)
def test_an_answer_that_is_begun_is_tokenised_as_in_training(
    written: dict[str, Any], turns: list[str], begun: str
) -> None:
    words = StageWords(Spec(written))
    roles = ["user", "assistant"] * 3
    asked = [{"role": role, "content": text} for role, text in zip(roles, turns, strict=False)]
    if asked[-1]["role"] == "assistant":
        asked.append({"role": "user", "content": "ab"})
    trained = template(MODEL, TOKENIZER, words._template).encode([*asked, {"role": "assistant", "content": begun}], [])
    ids = words.encode_chat([*asked, {"role": "assistant", "content": begun}])
    opening = words.encode_chat(asked)
    tokens = trained.tokens.tolist()
    assert tokens[: len(ids)] == ids and ids[: len(opening)] == opening
    end = tokens[len(ids)]
    assert end == words.chat.stop and trained.target[len(opening) : len(ids) + 1].all()


def test_marks_and_images_are_counted() -> None:
    turn = {"role": "user", "content": "<image> and <image>"}
    check_marks([turn, {"role": "assistant", "content": "<image>"}], 2)
    for messages, images in (([turn], 1), ([turn], 3), ([], 0)):
        with pytest.raises(InputError):
            check_marks(messages, images)


def test_a_raw_text_that_is_too_long_loses_its_beginning() -> None:
    assert whole([1], [2, 3, 4], 9) == [1, 2, 3, 4] and whole([1], [2, 3, 4], 2) == [3, 4]
    with pytest.raises(InputError, match="longer than the model reads"):
        whole([1], [2], 0)

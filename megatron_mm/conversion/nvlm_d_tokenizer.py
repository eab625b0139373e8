"""The tokenizer files and the chat template of an `NVLM_D` checkpoint. Loads no torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tokenizers import AddedToken
from tokenizers import Tokenizer as Engine

from megavlm.platform.errors import ConfigError

from ..data.templates.chatml import END, ChatML

if TYPE_CHECKING:
    from ..config import ModelConfig
    from ..data.tokenizer import TextTokenizer

RESOURCES = Path(__file__).parent / "resources" / "nvlm_d"
PAD = "<|vision_pad|>"  # stands in a served prompt, once for each visual token
BEGIN = "<|endoftext|>"  # what Qwen2 calls the beginning of a text, and never writes


class Tokenizer(NamedTuple):
    """A tokenizer that has `<|vision_pad|>`: tokenizer.json as text, and the ids that configurations name."""

    text: str
    size: int
    begin: int | None
    end: int

    @property
    def ids(self) -> dict[str, Any]:
        """bos_token_id and eos_token_id, as config.json names them."""
        return {"bos_token_id": self.begin, "eos_token_id": self.end}


def with_pad(tokenizer: TextTokenizer, model: ModelConfig) -> Tokenizer:
    """The training tokenizer with `<|vision_pad|>`, which Qwen2's own may lack (nvidia/NVLM-D-72B's is 151654).

    Its embedding is never read, yet its id must be one of the embedding's rows: raises ConfigError when none is free.
    """
    engine = Engine.from_str(tokenizer.path.read_text())
    engine.add_special_tokens([AddedToken(PAD, special=True, normalized=False)])
    size = 1 + max(engine.get_vocab(with_added_tokens=True).values())
    if size > model.decoder.vocab:
        raise ConfigError(
            f"{PAD} would be token {size - 1}, and the decoder has {model.decoder.vocab} rows",
            where="model.decoder.vocab",
            fix=f"train with model.decoder.vocab={-(-size // 8) * 8} or more",
        )
    return Tokenizer(engine.to_str(), size, engine.token_to_id(BEGIN), tokenizer.id_of(END))


def tokenizer_config(model: ModelConfig) -> dict[str, Any]:
    """tokenizer_config.json; the class reads tokenizer.json as it is, where Qwen2's own would write its parts anew."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": END,
        "pad_token": BEGIN,
        "clean_up_tokenization_spaces": False,
        "model_max_length": model.decoder.max_positions,
    }


def chat_template(template: ChatML) -> str:
    """chat_template.jinja: what the training's template writes, the system prompt of the training included.

    Without it a server takes Qwen2's stock template, whose system prompt the model was not trained with.
    """
    known = {"begin": template.bos, "default_system": template.system}
    values = [f"{{%- set {name} = {json.dumps(text, ensure_ascii=False)} -%}}" for name, text in known.items()]
    return "\n".join([*values, (RESOURCES / "chat_template.jinja").read_text()])

"""Yi-Chat's template: ChatML on a tokenizer of Llama's kind, without a system prompt of its own."""

from __future__ import annotations

from typing import Literal

from .chatml import ChatML


class Yi(ChatML):
    """Yi-Chat has neither a default system prompt nor a beginning-of-text token.

    Megatron-LM's NVLM code for Yi-34B begins with one (`bos: <|startoftext|>`) and learns the newline; Eagle's template
    for Yi-34B has the system prompt "Answer the questions.".
    """

    name: Literal["yi"] = "yi"  # type: ignore[assignment]
    system: str = ""

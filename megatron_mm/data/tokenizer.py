"""Text <-> token ids through the `tokenizers` library: a tokenizer.json is data, so no stranger's code is executed."""

from __future__ import annotations

import hashlib
from pathlib import Path

from tokenizers import Tokenizer as Engine

from megavlm.platform.errors import ConfigError, InputError

SHIPPED = Path(__file__).parent / "tokenizers"
IM_START, IM_END, END_OF_TEXT = "<|im_start|>", "<|im_end|>", "<|endoftext|>"


class TextTokenizer:
    """A tokenizer.json with the ChatML markers.

    `encode` treats every special token's name as ordinary characters, so that no text of a data set can close a turn.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        raw = path.read_bytes()
        try:
            self._engine = Engine.from_str(raw.decode())
        except Exception as error:  # the Rust side raises bare Exception
            raise InputError(f"not a tokenizer.json: {error}", where=str(path)) from None
        self._engine.encode_special_tokens = True
        self.hash = hashlib.sha256(raw).hexdigest()
        self.im_start, self.im_end = self.id_of(IM_START), self.id_of(IM_END)
        # What fills the tail of a packed sequence; it is never a target, so any token does.
        padding = self._engine.token_to_id(END_OF_TEXT)
        self.padding = self.im_end if padding is None else padding

    @property
    def vocab_size(self) -> int:
        """Token ids run from 0 to vocab_size - 1, added tokens included."""
        return self._engine.get_vocab_size(with_added_tokens=True)

    def id_of(self, token: str) -> int:
        """The id of one whole token; raises InputError when the vocabulary has none of that name."""
        found = self._engine.token_to_id(token)
        if found is None:
            raise InputError(
                f"the tokenizer has no token '{token}', which the ChatML template needs",
                where=str(self.path),
                fix="use a ChatML tokenizer (Qwen2's, or 'mini')",
            )
        return found

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`; no beginning-of-text token is added."""
        return self._engine.encode(text, add_special_tokens=False).ids

    def decode(self, ids: list[int]) -> str:
        """The text of `ids`, special tokens left out."""
        return self._engine.decode(ids, skip_special_tokens=True)

    def show(self, ids: list[int]) -> str:
        """The text of `ids` with special tokens written out: what `data inspect` prints."""
        return self._engine.decode(ids, skip_special_tokens=False)


def load_tokenizer(name_or_folder: str) -> TextTokenizer:
    """A shipped tokenizer ("mini") or a folder that holds tokenizer.json; raises ConfigError when there is none."""
    shipped = sorted(folder.name for folder in SHIPPED.iterdir() if folder.is_dir())
    folder = SHIPPED / name_or_folder if name_or_folder in shipped else Path(name_or_folder)
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise ConfigError(
            f"no tokenizer '{name_or_folder}': {path} is not there",
            where="data.tokenizer",
            fix=f"give a folder that holds tokenizer.json, or one of: {', '.join(shipped)}",
        )
    return TextTokenizer(path)

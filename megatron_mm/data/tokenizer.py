"""Text <-> token ids through the `tokenizers` library: a tokenizer.json is data, so no stranger's code is executed."""

from __future__ import annotations

import copy
import hashlib
import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as Engine

from megavlm.platform.errors import ConfigError, InputError

SHIPPED = Path(__file__).parent / "tokenizers"
# What may fill the tail of a packed sequence: Qwen2's and Yi's, Llama 3's, Llama 2's.
PADDING = ("<|endoftext|>", "<|end_of_text|>", "<unk>")
SHORT, HELD = 32, 4096  # characters of a text, and how many such are held: the words of templates, and tags of tiles


class TextTokenizer:
    """A tokenizer.json: byte-level (Qwen2, Llama 3) or sentencepiece converted (Llama 2, Vicuna, Yi).

    `encode` treats every special token's name as ordinary characters, so that no text of a data set can close a turn.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        raw = path.read_bytes()
        self.hash = hashlib.sha256(raw).hexdigest()
        document = _document(raw, path)
        texts = [json.dumps(each) for each in (document, _bare(document, False), _bare(document, True))]
        engines = {text: _engine(text, path) for text in dict.fromkeys(texts)}  # each holds a whole vocabulary
        self._engine, self._after_special, self._inside = (engines[text] for text in texts)
        self._held: dict[tuple[bool, str], list[int]] = {}
        # It is never a target, so any token does.
        found = (self._engine.token_to_id(token) for token in PADDING)
        self.padding = next((token for token in found if token is not None), 0)

    @property
    def vocab_size(self) -> int:
        """Token ids run from 0 to vocab_size - 1, added tokens included."""
        return self._engine.get_vocab_size(with_added_tokens=True)

    def id_of(self, token: str) -> int:
        """The id of one whole token; raises InputError when the vocabulary has none of that name."""
        found = self._engine.token_to_id(token)
        if found is None:
            raise InputError(
                f"the tokenizer has no token '{token}'",
                where=str(self.path),
                fix="use the tokenizer that the template was published with, or another data.template",
            )
        return found

    def encode(self, text: str) -> list[int]:
        """Token ids of `text` at the beginning of a sequence; no beginning-of-text token is added."""
        return self._engine.encode(text, add_special_tokens=False).ids

    def encode_after(self, text: str, special: bool) -> list[int]:
        """Token ids of `text` that goes on after other text, or (`special`) after a special token or an image.

        Tokenizers of sentencepiece's kind put a space before a text. In the middle of a sequence there is none, and
        after a special token it depends on the tokenizer: older Llama tokenizers put one there, newer ones do not.
        """
        found = self._held.get((special, text))
        if found is None:
            found = (self._after_special if special else self._inside).encode(text, add_special_tokens=False).ids
            if len(text) <= SHORT and len(self._held) < HELD:
                self._held[special, text] = found
        return found.copy()

    def decode(self, ids: list[int]) -> str:
        """The text of `ids`, special tokens left out."""
        return self._engine.decode(ids, skip_special_tokens=True)

    def show(self, ids: list[int]) -> str:
        """The text of `ids` with special tokens written out: what `data inspect` prints."""
        return self._engine.decode(ids, skip_special_tokens=False)


def _document(raw: bytes, path: Path) -> dict[str, Any]:
    try:
        document = json.loads(raw)
    except ValueError as error:
        raise InputError(f"not a tokenizer.json: {error}", where=str(path)) from None
    if not isinstance(document, dict):
        raise InputError("not a tokenizer.json: no object", where=str(path))
    return document


def _engine(text: str, path: Path) -> Engine:
    try:
        engine = Engine.from_str(text)
    except Exception as error:  # the Rust side raises bare Exception
        raise InputError(f"not a tokenizer.json: {error}", where=str(path)) from None
    engine.encode_special_tokens = True
    return engine


def _bare(document: dict[str, Any], everywhere: bool) -> dict[str, Any]:
    """A tokenizer.json that puts no space before a text; not `everywhere`: only where none follows a special token.

    A `Prepend` normalizer and Metaspace's scheme `always` act after every special token, the scheme `first` does not.
    """
    document = copy.deepcopy(document)
    for step in _steps(document.get("pre_tokenizer"), "pretokenizers"):
        if step["type"] == "Metaspace" and (everywhere or step.get("prepend_scheme") == "first"):
            step |= {"prepend_scheme": "never", "add_prefix_space": False}
        elif step["type"] == "ByteLevel" and everywhere:
            step["add_prefix_space"] = False
    normalizers = _steps(document.get("normalizer"), "normalizers")
    rest = [step for step in normalizers if step["type"] != "Prepend"]
    if everywhere and rest != normalizers:
        document["normalizer"] = {"type": "Sequence", "normalizers": rest} if rest else None
    return document


def _steps(part: dict[str, Any] | None, inner: str) -> list[dict[str, Any]]:
    """The steps of a normalizer or pre-tokenizer, those of a sequence one by one."""
    if part is None:
        return []
    return [step for each in part[inner] for step in _steps(each, inner)] if part["type"] == "Sequence" else [part]


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

"""Prompts: text files with placeholders, shipped by name or a user's own by path."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Collection
from pathlib import Path
from string import Template

from megavlm.platform.errors import ConfigError, did_you_mean

SHIPPED = Path(__file__).parent / "prompts"
ALT_TEXT = "alt_text"


@dataclasses.dataclass(frozen=True)
class Prompt:
    """The words sent with every image; `$alt_text` and `$FIELD` stand for what is known of the sample."""

    template: Template

    @classmethod
    def load(cls, name: str, fields: Collection[str] = ()) -> Prompt:
        """A shipped prompt's name, or the path of a text file; `fields` are the names that it may mention.

        Lines at the top that begin with `#` are notes and are not sent. Raises ConfigError when there is no such file,
        nothing to send in it, or a placeholder that nobody fills.
        """
        template = Template(_without_notes(_text(name)))
        if not template.template:
            raise ConfigError(f"prompt '{name}' says nothing", fix="write what the model is to do")
        if not template.is_valid():
            raise ConfigError(f"prompt '{name}' has a '$' that begins no placeholder", fix="write $$ for a dollar")
        known = {ALT_TEXT, *fields}
        if unknown := sorted(set(template.get_identifiers()) - known):
            raise ConfigError(f"prompt '{name}' has an unknown ${unknown[0]}", fix=did_you_mean(unknown[0], known))
        return cls(template)

    @property
    def sha256(self) -> str:
        """Of the template as it is sent."""
        return hashlib.sha256(self.template.template.encode()).hexdigest()

    def fill(self, alt_text: str, metadata: str) -> str:
        """The text for one sample. `metadata` is its JSON object; a field that it lacks leaves its place empty.

        Values are put in as they are: a `$` in an alt-text is no placeholder.
        """
        known = json.loads(metadata)
        names = [name for name in self.template.get_identifiers() if name != ALT_TEXT]
        return self.template.substitute({name: _words(known.get(name)) for name in names}, **{ALT_TEXT: alt_text})


def shipped() -> list[str]:
    """The names of the prompts that come along."""
    return sorted(path.stem for path in SHIPPED.glob("*.txt"))


def _text(name: str) -> str:
    path = SHIPPED / f"{name}.txt" if name in shipped() else Path(name)
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        fix = f"give a text file, or one of {', '.join(shipped())}"
        raise ConfigError(f"no prompt '{name}': {type(error).__name__}", fix=fix) from None


def _without_notes(text: str) -> str:
    return re.sub(r"\A(\s*#[^\n]*(\n|\Z))+", "", text).strip()


def _words(value: object) -> str:
    """A field as words: lists joined by commas, nothing for nothing."""
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return "" if value is None else str(value)

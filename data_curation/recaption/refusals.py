"""What models say instead of a caption. A table: a new phrase is one line here."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Sequence

_NOT = r"(?:can(?:no|')?t|can not|could ?n[o']t|am (?:not able|unable)(?: to)?|'m (?:not able|unable)(?: to)?)"
_DO = r"(?:help|assist|provide|describe|identify|determine|see|view|access|process|analy[sz]e|generate|create|fulfil)"
_MODEL = r"(?:an? )?(?:ai|artificial intelligence|large language model|language model|text-based|assistant)\b"

# Tried at the beginning of each sentence, after quotation marks have gone; upper and lower case alike.
PATTERNS = (
    rf"(?:i'm|i am|we're|we are|my) (?:very |so |truly )?(?:sorry|apologi[sz]e|apologies)\b.*\b{_NOT}\b",
    r"(?:i'm sorry|i am sorry|sorry|my apologies|i apologi[sz]e),? (?:but|for)\b",
    rf"(?:unfortunately,? |however,? )?i {_NOT} {_DO}\b",
    rf"(?:unfortunately,? )?i{_NOT} {_DO}\b",
    rf"as {_MODEL}",
    rf"i(?:'m| am) (?:just |only )?{_MODEL}",
    r"(?:i |it )?(?:do not|don't|does not|doesn't) (?:have|see) (?:access to |the ability to |any |an? )?"
    r"(?:view |see )?(?:the )?(?:image|picture|photo)",
    r"(?:no image|there is no image|no picture) (?:was |has been |is )?(?:provided|attached|uploaded|given|visible)",
    r"(?:please|could you|can you) (?:provide|upload|attach|share|send) (?:me )?(?:the|an?|your) (?:image|picture)",
    r"(?:certainly|sure|of course|absolutely|okay|ok)(?:[!,:]|\.$)",
    r"here(?:'s| is) (?:an?|the|your) (?:[\w-]+ ){0,3}(?:description|caption)\b",
)


def refusal(text: str, also: Iterable[str] = ()) -> str | None:
    """The words by which `text` is known as no caption, or None. `also` are further patterns."""
    found = (match for sentence in _sentences(text) for match in [_known(tuple(also)).match(sentence)] if match)
    match = next(found, None)
    return None if match is None else match[0][:80]


@functools.cache
def _known(also: Sequence[str]) -> re.Pattern[str]:
    return re.compile("|".join(f"(?:{pattern})" for pattern in (*PATTERNS, *also)), re.IGNORECASE)


def _sentences(text: str) -> list[str]:
    """Sentences with plain apostrophes. What stands in quotation marks is read off the image, and left out."""
    plain = text.replace("’", "'").replace("“", '"').replace("”", '"')
    return re.split(r"(?<=[.!?])\s+|\n+", re.sub(r'"[^"]*"', '""', plain.strip()))

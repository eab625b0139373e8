"""The rules that check a caption. Each is a small schema of options with one question: what is wrong with this text?"""

from __future__ import annotations

import functools
import re
import unicodedata
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import NonNegativeInt, PositiveInt, field_validator, model_validator

from megavlm.platform.config import Config
from megavlm.platform.errors import ConfigError, did_you_mean
from megavlm.platform.registry import Registry

from .refusals import refusal
from .repetition import repeated_grams, repeated_lines, top_gram
from .words import Caption

if TYPE_CHECKING:
    from py3langid.langid import LanguageIdentifier

CAPTION_RULES = Registry("caption rule", {
    "length": "megavlm.data_curation.recaption.rules:Length",
    "refusal": "megavlm.data_curation.recaption.rules:Refusal",
    "repetition": "megavlm.data_curation.recaption.rules:Repetition",
    "incomplete": "megavlm.data_curation.recaption.rules:Incomplete",
    "language": "megavlm.data_curation.recaption.rules:Language",
})  # fmt: skip
DEFAULT_RULES = [{"name": name} for name in CAPTION_RULES]

TERMINAL = frozenset(".!?。！？．؟۔।")  # ends of sentences: Latin, full-width, Arabic, Urdu, Devanagari


class Rule(Config):
    """Base of the rules."""

    reason: ClassVar[str]  # stands in the sidecar of a caption that breaks it
    name: str

    def broken(self, caption: Caption) -> str | None:
        """How the caption breaks the rule, for a person to read; None when it does not."""
        raise NotImplementedError


class Length(Rule):
    """Too few or too many words."""

    reason: ClassVar[str] = "caption_length"
    name: Literal["length"] = "length"
    min_words: NonNegativeInt = 5  # our guess
    max_words: PositiveInt = 1000  # our guess; DenseFusion's captions have 191 on average (its section 3.2)

    def broken(self, caption: Caption) -> str | None:
        """Counted in words, or characters where the script has no spaces."""
        count = len(caption.words)
        within = self.min_words <= count <= self.max_words
        return None if within else f"{count} words, allowed are {self.min_words} to {self.max_words}"


class Refusal(Rule):
    """The model declined, or spoke of itself."""

    reason: ClassVar[str] = "refusal"
    name: Literal["refusal"] = "refusal"
    also: tuple[str, ...] = ()  # further regular expressions, tried at the beginning of each sentence

    @field_validator("also")
    @classmethod
    def _compile(cls, also: tuple[str, ...]) -> tuple[str, ...]:
        for pattern in also:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ConfigError(f"'{pattern}' is no regular expression: {error}", where="also") from None
        return also

    def broken(self, caption: Caption) -> str | None:
        """The words that give it away."""
        return refusal(caption.text, self.also)


class Repetition(Rule):
    """The text repeats itself more than Gopher allows of web pages (arXiv 2112.11446, table A1).

    Fractions are of the caption's characters but for `lines`. A page is long and a caption is short: two mentions of
    "red car" are a third of ten words. So the most frequent n-gram counts only from its `min_count`-th occurrence on.
    """

    reason: ClassVar[str] = "repetitive"
    name: Literal["repetition"] = "repetition"
    top_grams: dict[int, float] = {2: 0.20, 3: 0.18, 4: 0.16}  # n -> most of the text in its commonest n-gram
    repeated_grams: dict[int, float] = {5: 0.15, 6: 0.14, 7: 0.13, 8: 0.12, 9: 0.11, 10: 0.10}  # in all repeated ones
    lines: float = 0.30  # of the lines may have occurred before
    line_characters: float = 0.20
    min_count: PositiveInt = 4  # our guess

    @model_validator(mode="after")
    def _whole_grams(self) -> Repetition:
        if bad := [n for n in [*self.top_grams, *self.repeated_grams] if n < 1]:
            raise ConfigError(f"no text has {bad[0]}-grams", where="repetition", fix="count from 1")
        return self

    def broken(self, caption: Caption) -> str | None:
        """The first limit that is passed, lines before n-grams, short before long."""
        lines, letters = repeated_lines(caption.lines)
        if lines > self.lines or letters > self.line_characters:
            return f"{lines:.0%} of the lines occurred before, {letters:.0%} of their characters"
        for n, most in sorted(self.top_grams.items()):
            gram, count, part = top_gram(caption.words, n, self.min_count)
            if part > most:
                return f"'{' '.join(gram)}' {count} times: {part:.0%} of the text"
        for n, most in sorted(self.repeated_grams.items()):
            if (part := repeated_grams(caption.words, n)) > most:
                return f"{part:.0%} of the text in repeated {n}-grams"
        return None


class Incomplete(Rule):
    """The text breaks off: max_tokens cut it, or its last sentence has no end."""

    reason: ClassVar[str] = "incomplete_sentence"
    name: Literal["incomplete"] = "incomplete"

    def broken(self, caption: Caption) -> str | None:
        """Closing quotes, brackets and decorations after the last sentence are passed over; dots in a row end none."""
        if caption.finish == "length":
            return "cut by max_tokens"
        text = _undecorated(caption.text)
        if text.endswith(("...", "…", "..")):
            return f"trails off: '{text[-20:]}'"
        return None if text[-1:] and text[-1] in TERMINAL else f"ends in '{text[-20:]}'"


class Language(Rule):
    """Written in none of the wanted languages, as py3langid sees it (langid.py, Lui and Baldwin 2012)."""

    reason: ClassVar[str] = "wrong_language"
    name: Literal["language"] = "language"
    languages: tuple[str, ...] = ("en",)  # ISO 639-1
    min_probability: float = 0.01  # of the wanted ones together; our guess, since brands and names sway it
    min_words: PositiveInt = 5  # shorter ones are not judged: names and numbers are of no language

    @field_validator("languages")
    @classmethod
    def _known(cls, languages: tuple[str, ...]) -> tuple[str, ...]:
        known = identifier().labels
        if unknown := [language for language in languages if language not in known]:
            fix = did_you_mean(unknown[0], known)
            raise ConfigError(f"unknown language '{unknown[0]}'", where="languages", fix=fix)
        return languages

    def broken(self, caption: Caption) -> str | None:
        """The language it is taken for."""
        if len(caption.words) < self.min_words:
            return None
        ranked = identifier().rank(caption.text)
        wanted = sum(float(probability) for language, probability in ranked if language in self.languages)
        if wanted >= self.min_probability:
            return None
        return f"'{ranked[0][0]}', and {', '.join(self.languages)} with probability {wanted:.4f}"


@functools.cache
def identifier() -> LanguageIdentifier:
    """py3langid's own model, which its package brings along as plain numbers; probabilities add up to 1."""
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


def first_broken(rules: list[Any], caption: Caption) -> tuple[str, str] | None:
    """(reason, detail) of the first rule that a caption breaks, in the order of the recipe."""
    return next(((rule.reason, detail) for rule in rules if (detail := rule.broken(caption)) is not None), None)


def _undecorated(text: str) -> str:
    """Without the closing quotes, brackets, asterisks, spaces and symbols (emoji) at the end."""
    while text and (text[-1] in "\"'*_`" or unicodedata.category(text[-1]) in _DECORATION):
        text = text[:-1]
    return text


_DECORATION = {"Pe", "Pf", "Zs", "Cc", "Cf", "So", "Sk", "Mn"}  # closing, spaces, controls, symbols, their modifiers

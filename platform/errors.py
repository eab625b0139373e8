"""Named errors: each says what is wrong with which value, where, and how to mend it, and carries its exit code."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class MegaVLMError(Exception):
    """Base of every error a user may see.

    `what` names the offending value, `where` the place (a key, a file, a line), `fix` what to do about it.
    """

    exit_code = 1

    def __init__(self, what: str, *, where: str | None = None, fix: str | None = None) -> None:
        self.what, self.where, self.fix = what, where, fix
        super().__init__(what)

    def __str__(self) -> str:
        lines = [self.what]
        if self.where:
            lines.append(f"  where: {self.where}")
        if self.fix:
            lines.append(f"  fix:   {self.fix}")
        return "\n".join(lines)


class ConfigError(MegaVLMError):
    """A configuration that cannot be right: unknown key, wrong type, sizes that do not divide."""

    exit_code = 2


class InputError(MegaVLMError):
    """Input that is missing or unreadable as a whole (a single bad sample is never an error, but a ledger entry)."""

    exit_code = 2


class StorageFault(MegaVLMError):
    """A disk or a network that did not give what is there: nothing is known of the data, and another try may do."""

    exit_code = 1


class NotBuiltYet(MegaVLMError):
    """The contract has this verb or option; the code does not have it yet."""

    exit_code = 1


class MissingPackage(MegaVLMError):
    """An optional package is needed here and not installed."""

    exit_code = 2


class CheckFailed(MegaVLMError):
    """A check or gate said no."""

    exit_code = 3


class SavedResumable(MegaVLMError):
    """Stopped on request after saving; the same command resumes."""

    exit_code = 4


class Undecided(MegaVLMError):
    """A gate could not decide with the items it had."""

    exit_code = 5


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name closest in spelling to `name`, or None when nothing is close."""
    matches = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return matches[0] if matches else None


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A sentence for an unknown `name`: the nearest known one, or all there are."""
    known = sorted(known)
    close = nearest(name, known)
    return f"did you mean '{close}'?" if close else f"known: {', '.join(known)}"

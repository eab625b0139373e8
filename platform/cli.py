"""The command line's shell: finds the verb, runs its function, turns errors into messages and exit codes.

Imports nothing heavy, so that `megavlm --help` answers at once.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence

from .errors import ConfigError, MegaVLMError, NotBuiltYet, did_you_mean
from .registry import load_object
from .verbs import AUDIENCES, VERBS

EXAMPLES = """\
examples:
  megavlm demo                                    photographs in, a trained and measured model out, on two CPU cores
  megavlm recipes show nvlm-d-mini                what a recipe sets, and where each value comes from
"""

EXIT_CODES = (
    "exit codes: 0 ok, 1 failed, 2 bad configuration or input, 3 a check said no, 4 saved and resumable, 5 undecided"
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; returns the process's exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        return _dispatch(argv)
    except MegaVLMError as error:
        _tell(error, as_json="--json" in argv)
        return error.exit_code
    except BrokenPipeError:
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def _dispatch(argv: list[str]) -> int:
    if not argv or argv[0] in {"-h", "--help"}:
        print(help_text())
        return 0
    if argv[0] == "--version":
        print(f"megavlm {version()}")
        return 0
    name, rest = _split_verb(argv)
    if name not in VERBS:
        added = third_party()
        return int(load_object(added[name])(rest) or 0) if name in added else _help_of_group(name, rest)
    target = VERBS[name].target
    if target is None:
        raise NotBuiltYet(
            f"`megavlm {name}` is not built yet", fix="`megavlm --help` marks what is; CHANGELOG.md says what is next"
        )
    return int(load_object(target)(rest) or 0)


def third_party() -> dict[str, str]:
    """Verbs of other packages, name -> "module:function": their entry points in the group `megavlm.commands`."""
    from importlib.metadata import entry_points

    return {entry.name: entry.value for entry in entry_points(group="megavlm.commands")}


def _split_verb(argv: list[str]) -> tuple[str, list[str]]:
    """The longest verb that argv starts with, and the rest."""
    if " ".join(argv[:2]) in VERBS:
        return " ".join(argv[:2]), argv[2:]
    return argv[0], argv[1:]


def _help_of_group(name: str, rest: list[str]) -> int:
    """`megavlm curate` alone lists its verbs; anything else unknown is an error."""
    group = [verb for verb in VERBS if verb.startswith(f"{name} ")]
    if group and (not rest or rest[0] in {"-h", "--help"}):
        print("\n".join(_line(verb) for verb in group))
        return 0
    asked = " ".join([name, *rest[:1]]) if group else name
    raise ConfigError(f"unknown verb '{asked}'", fix=did_you_mean(asked, group or VERBS))


def help_text() -> str:
    """The first screen."""
    parts = ["usage: megavlm VERB [RECIPE|FILE.yaml|RUN] [KEY=VALUE ...] [--json]", "", EXAMPLES]
    for audience, title in AUDIENCES.items():
        parts += [f"{title}:"] + [_line(name) for name, verb in VERBS.items() if verb.audience == audience] + [""]
    if added := third_party():
        parts += ["from other packages:", *(f"  {name:<20}{target}" for name, target in added.items()), ""]
    parts.append(EXIT_CODES)
    return "\n".join(parts)


def _line(name: str) -> str:
    verb = VERBS[name]
    return f"  {name:<20}{verb.help}" + ("" if verb.target else "  [not built yet]")


def version() -> str:
    """The installed version, or "source" when run from a checkout that is not installed."""
    from importlib.metadata import PackageNotFoundError
    from importlib.metadata import version as installed

    try:
        return installed("megavlm")
    except PackageNotFoundError:
        return "source"


def _tell(error: MegaVLMError, as_json: bool) -> None:
    print(f"megavlm: {error}", file=sys.stderr)
    if as_json:
        fields = {"what": error.what, "where": error.where, "fix": error.fix, "exit_code": error.exit_code}
        print(json.dumps({"error": fields}))


def parser(verb: str, epilog: str = "") -> argparse.ArgumentParser:
    """An argument parser for one verb; every verb that tells something gets --json from here."""
    out = argparse.ArgumentParser(
        prog=f"megavlm {verb}",
        description=VERBS[verb].help,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    out.add_argument("--json", action="store_true", help="stdout is one JSON object, messages go to stderr")
    return out


def split_overrides(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Separate `a.b=c` overrides, which may stand anywhere, from the other arguments."""
    import re

    is_override = [bool(re.match(r"[A-Za-z_][\w.-]*=", word)) for word in argv]
    return (
        [word for word, yes in zip(argv, is_override, strict=True) if not yes],
        [word for word, yes in zip(argv, is_override, strict=True) if yes],
    )


if __name__ == "__main__":
    sys.exit(main())

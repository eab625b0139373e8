"""The documentation against the code: links, commands, verbs, recipes and everything a recipe can name."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from contextlib import redirect_stdout
from functools import cache
from io import StringIO
from pathlib import Path
from typing import NamedTuple

import pytest

from megavlm.platform.cli import main, split_overrides
from megavlm.platform.config import list_recipes, load_recipe
from megavlm.platform.registry import Registry, load_object
from megavlm.platform.verbs import VERBS

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("platform", "kernels", "data_curation", "megatron_mm", "slurm")
FOLDERS = (*ROOMS, "docs", "benchmarks", "tests", "requirements")
PAGES = sorted([*ROOT.glob("*.md"), *(page for folder in FOLDERS for page in (ROOT / folder).rglob("*.md"))])
RECIPES_PAGE = ROOT / "docs" / "recipes.md"
# Heading of docs/recipes.md -> the registry whose names its table lists.
TABLES = {
    "Encoders": "megavlm.megatron_mm.encoders:ENCODERS",
    "Connectors": "megavlm.megatron_mm.connectors:CONNECTORS",
    "Injection": "megavlm.megatron_mm.injection:INJECTIONS",
    "Decoders": "megavlm.megatron_mm.decoders:DECODERS",
    "Objectives": "megavlm.megatron_mm.objectives:OBJECTIVES",
    "Templates": "megavlm.megatron_mm.data.templates:TEMPLATES",
    "Conversions": "megavlm.data_curation.convert:CONVERSIONS",
    "Trackers": "megavlm.megatron_mm.training.trackers:TRACKERS",
    "Watchers": "megavlm.megatron_mm.training.watchers:WATCHERS",
    "Suites": "megavlm.megatron_mm.evaluation:SUITES",
    "Curation stages": "megavlm.data_curation.stages:STAGES",
    "Caption rules": "megavlm.data_curation.recaption.rules:CAPTION_RULES",
    "Text formats": "megavlm.data_curation.text.formats:FORMATS",
    "Sources": "megavlm.data_curation.sources:SOURCES",
    "Filters": "megavlm.data_curation.filters:FILTERS",
    "Embedders": "megavlm.data_curation.embedders:EMBEDDERS",
    "Tilings": "megavlm.platform.images:TILINGS",
    "Image decoders": "megavlm.platform.images:IMAGE_DECODERS",
    "Executors": "megavlm.platform.executor:EXECUTORS",
}
# Of these docs/conversion.md and docs/evaluation.md have tables.
NOT_NAMED_BY_RECIPES = {"report section", "weight format", "engine", "harness", "scorer"}
TAKES_A_RECIPE = {"train", "plan", "curate run", "data pack", "recipes show"}
MARK = "not built yet"


class Command(NamedTuple):
    """One documented command line."""

    page: str
    words: list[str]
    comment: str

    @property
    def verb(self) -> str:
        """The longest verb it starts with, or its first word."""
        pair = " ".join(self.words[1:3])
        return pair if pair in VERBS else " ".join(self.words[1:2])

    @property
    def arguments(self) -> list[str]:
        return self.words[1 + len(self.verb.split()) :]


def code_lines(text: str) -> Iterator[str]:
    """Lines of fenced and of indented blocks; a line that ends in a backslash goes on."""
    fenced, held = False, ""
    for line in text.splitlines():
        if line.startswith("```"):
            fenced = not fenced
        elif fenced or line.startswith("    "):
            held += line.strip().removesuffix("\\")
            if not line.endswith("\\"):
                yield held
                held = ""


def commands(program: str) -> list[Command]:
    """Every documented command line of a program, `.venv/bin/` before it or not."""
    found = []
    for page in PAGES:
        for line in code_lines(page.read_text()):
            match = re.match(rf"(?:\$ )?(?:\.venv/bin/)?{program}(?: |$)", line)
            if match and not re.match(rf"\S*{program} +\.\.\.", line):
                text, _, comment = line.removeprefix("$ ").partition("  #")
                found.append(Command(str(page.relative_to(ROOT)), shlex.split(text), comment))
    return found


MEGAVLM = commands("megavlm")
# Cheap and without effect: these are run as they stand, once each. `--dry-run` loads no torch and writes nothing.
RUNNABLE = {
    shlex.join(command.words): command
    for command in MEGAVLM
    if command.verb in {"", "--help", "--version", "doctor"}
    or command.verb.startswith("recipes ")
    or {"--dry-run", "--help"} & set(command.words)
}


def shown(command: Command) -> str:
    return f"{command.page}: {shlex.join(command.words)}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_relative_link_leads_somewhere(page):
    targets = re.findall(r"\]\(([^)\s]+)\)", page.read_text())
    inside = [target.split("#")[0] for target in targets if not re.match(r"[a-z]+:", target)]
    missing = [target for target in inside if target and not (page.parent / target).exists()]
    assert missing == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_anchor_is_a_heading(page):
    for target in re.findall(r"\]\(([^)\s:]*#[^)\s]+)\)", page.read_text()):
        file, _, anchor = target.partition("#")
        assert anchor in anchors((page.parent / file if file else page).read_text()), target


def anchors(text: str) -> set[str]:
    titles = re.findall(r"^#+ +(.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_there_are_commands_to_test():
    assert {command.page for command in MEGAVLM} >= {"README.md", "docs/admins.md", "docs/recipes.md"}
    assert len(RUNNABLE) >= 8


@pytest.mark.parametrize("command", MEGAVLM, ids=shown)
def test_every_command_is_a_verb_and_marked_where_it_is_not_built(command):
    if command.verb in {"", "--help", "--version"} or any(verb.startswith(f"{command.verb} ") for verb in VERBS):
        return
    assert command.verb in VERBS, f"no such verb: {command.verb}"
    assert (MARK in command.comment) == (VERBS[command.verb].target is None)


@pytest.mark.parametrize("command", [c for c in MEGAVLM if VERBS.get(c.verb, (0, 0, None))[2]], ids=shown)
def test_every_option_of_a_command_is_one_of_its_verb(command):
    used = {word.split("=")[0] for word in command.arguments if word.startswith("--")}
    assert used <= options_of(command.verb)


@cache
def options_of(verb: str) -> set[str]:
    """What `--help` of a verb names, once for all commands that begin with it."""
    said = StringIO()
    with redirect_stdout(said), pytest.raises(SystemExit):
        main([*verb.split(), "--help"])
    return set(re.findall(r"--[a-z][\w-]*", said.getvalue()))


@pytest.mark.parametrize("command", [c for c in MEGAVLM if c.verb in TAKES_A_RECIPE], ids=shown)
def test_every_recipe_of_a_command_resolves_with_its_overrides(command):
    words, overrides = split_overrides(command.arguments)
    if words[0] in {"RECIPE", "--help"} or words[0].endswith(".yaml"):
        return
    assert load_recipe(words[0], overrides).name == words[0]


@pytest.mark.parametrize("command", RUNNABLE.values(), ids=shown)
def test_cheap_commands_run_as_they_stand(command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MEGAVLM_RUNS", str(tmp_path / "runs"))
    allowed = {0, 3} if command.verb == "doctor" else {1} if MARK in command.comment else {0}
    assert exit_code(command.words[1:]) in allowed, capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def exit_code(words: list[str]) -> int:
    """Of the command line, in this process: argparse leaves by itself after --help."""
    try:
        return main(words)
    except SystemExit as left:
        return int(left.code or 0)


@pytest.mark.parametrize("command", commands("make"), ids=shown)
def test_every_make_target_exists(command):
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = [word for word in command.words[1:] if "=" not in word]
    assert named and set(named) <= targets


def rows(text: str, heading: str) -> dict[str, list[str]]:
    """First cell (a name in backticks) -> the other cells, of the table under a heading."""
    section = re.search(rf"^## {re.escape(heading)}\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    assert section, f"no heading '{heading}'"
    cells = [line.strip("|").split("|") for line in section[1].splitlines() if line.startswith("| `")]
    return {first.strip(" `"): [cell.strip() for cell in rest] for first, *rest in cells}


@pytest.mark.parametrize("heading", list(TABLES))
def test_every_registered_name_has_a_row_and_no_row_is_left_over(heading):
    registry = load_object(TABLES[heading])
    assert isinstance(registry, Registry)
    assert set(rows(RECIPES_PAGE.read_text(), heading)) == set(registry)


def test_every_registry_has_a_table():
    documented = {load_object(target).kind for target in TABLES.values()}
    assert registry_kinds() - NOT_NAMED_BY_RECIPES == documented


def registry_kinds() -> set[str]:
    """The kind of every Registry made anywhere in the rooms, read from the source."""
    calls = [
        node
        for room in ROOMS
        for path in (ROOT / room).rglob("*.py")
        if "Registry(" in (text := path.read_text())  # to parse them all takes seconds
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Registry"
    ]
    return {call.args[0].value for call in calls if isinstance(call.args[0], ast.Constant)}


def test_every_recipe_has_a_row_with_its_parameter_count():
    table = rows(RECIPES_PAGE.read_text(), "Shipped recipes")
    assert set(table) == set(list_recipes())
    for name, cells in table.items():
        model = load_recipe(name).sections.get("model")
        assert cells[-1] == (f"{model.parameter_counts()['total']:,}" if model else "")


def test_the_readme_lists_every_verb_with_its_state():
    table = rows((ROOT / "README.md").read_text(), "What is built, and what is not yet")
    assert list(table) == list(VERBS)
    for name, (text, state) in table.items():
        assert text == VERBS[name].help
        assert state.startswith("built") == (VERBS[name].target is not None), name


def test_the_readme_names_every_room():
    layout = (ROOT / "README.md").read_text().partition("## Layout")[2]
    assert all(f"    {room}/" in layout for room in ROOMS)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_file_a_page_names_exists(page):
    """Paths in backticks that begin with a folder of ours; NAME and the like stand for the reader's own."""
    named = re.findall(rf"`((?:{'|'.join(FOLDERS)})/[\w./-]+\.(?:py|md|yaml|lock))`", page.read_text())
    missing = [name for name in named if not re.search(r"[A-Z]{3,}|/x\.", name) and not (ROOT / name).exists()]
    assert missing == []

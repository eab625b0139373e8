"""Guards of the house: its layout, the direction of imports, and the command line's contract."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from megavlm.platform.cli import help_text, main
from megavlm.platform.registry import load_object
from megavlm.platform.verbs import AUDIENCES, VERBS

ROOT = Path(__file__).resolve().parents[1]
# Room -> the rooms below it. Arrows only point down, and data_curation and megatron_mm meet in files only.
BELOW = {
    "kernels": set(),
    "platform": set(),
    "data_curation": {"platform", "kernels"},
    "megatron_mm": {"platform", "kernels"},
    "slurm": {"platform"},
}
MODULES = [path for room in BELOW for path in sorted((ROOT / room).rglob("*.py"))]


@pytest.mark.parametrize("room", ["platform", "kernels"])
def test_no_init_directly_in_a_room_whose_name_is_taken(room):
    assert not (ROOT / room / "__init__.py").exists()


@pytest.mark.parametrize("room", list(BELOW))
def test_the_import_package_is_made_of_relative_links(room):
    link = ROOT / "src" / "megavlm" / room
    assert os.readlink(link) == f"../../{room}"
    assert link.resolve() == ROOT / room


def test_the_import_package_holds_nothing_else():
    names = {path.name for path in (ROOT / "src" / "megavlm").iterdir()} - {"__pycache__"}
    assert names == set(BELOW)


def test_pythons_own_platform_module_is_not_shadowed():
    code = "import platform; print(platform.system())"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and done.stdout.strip() == os.uname().sysname


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_cross_rooms_downward_and_absolutely_and_stay_relative_inside(path):
    assert list(offences(path)) == []


@pytest.mark.parametrize(
    ("room", "line"),
    [
        ("platform", "from megavlm.megatron_mm.config import Stage"),
        ("platform", "from megavlm.platform.errors import InputError"),
        ("platform", "import torch.nn"),
        ("platform", "def f():\n    from torch import nn"),
        ("kernels", "from megavlm.platform.errors import InputError"),
        ("data_curation", "from megavlm.megatron_mm import config"),
        ("data_curation", "from megavlm import megatron_mm"),
        ("data_curation", "import data_curation.config"),
        ("megatron_mm", "from ..data_curation import config"),
        ("megatron_mm", "import megavlm.data_curation.config"),
        ("slurm", "from platform.runs import RunFolder"),
        ("slurm", "from megavlm.kernels import attention"),
    ],
)
def test_the_guard_sees_a_crossing(tmp_path, room, line):
    (tmp_path / room).mkdir()
    path = tmp_path / room / "module.py"
    path.write_text(line)
    assert len(list(offences(path, tmp_path))) == 1


@pytest.mark.parametrize(
    ("room", "line"),
    [
        ("platform", "import platform"),
        ("platform", "from .errors import InputError"),
        ("data_curation", "import torch\nfrom megavlm.platform.shards import ShardReader"),
        ("megatron_mm", "from megavlm.kernels.attention import attend"),
    ],
)
def test_the_guard_lets_the_rest_pass(tmp_path, room, line):
    (tmp_path / room).mkdir()
    path = tmp_path / room / "module.py"
    path.write_text(line)
    assert list(offences(path, tmp_path)) == []


def offences(path: Path, root: Path = ROOT) -> Iterator[str]:
    """Every import of a file that breaks the rule, with its line."""
    room, *folders = path.relative_to(root).parent.parts
    for node in ast.walk(ast.parse(path.read_text())):
        for module in _imported(node, depth=len(folders) + 1):
            if not _allowed(room, module):
                yield f"{path.relative_to(root)}:{node.lineno}: {module}"


def _imported(node: ast.AST, depth: int) -> Iterator[str]:
    """Modules that a statement imports; "." stands for the own room, ".." for what is above it."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom) and node.level:
        yield "." if node.level <= depth else ".."
    elif isinstance(node, ast.ImportFrom) and node.module == "megavlm":
        yield from (f"megavlm.{alias.name}" for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        yield node.module or ""


def _allowed(room: str, module: str) -> bool:
    first, *rest = module.split(".")
    if module.startswith("."):
        return module == "."
    if first == "megavlm":
        return not rest or rest[0] in BELOW[room]  # the bare package is a place on disk
    if first == "platform":
        return not rest  # Python's own, which has no submodules
    return first not in BELOW and not (room == "platform" and first in {"torch", "torchvision", "megatron"})


def test_help_answers_at_once_and_imports_nothing_heavy(children_seconds):
    command = [sys.executable, "-m", "megavlm.platform.cli", "--help"]
    seconds = []
    for _ in range(3):
        before = children_seconds()
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        seconds.append(children_seconds() - before)
    assert done.returncode == 0 and done.stdout.strip() == help_text().strip()
    assert min(seconds) < 0.3
    code = "import sys, json, megavlm.platform.cli as cli; cli.main(['--help']); print(json.dumps(list(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    modules = set(json.loads(done.stdout.splitlines()[-1]))
    assert not {"torch", "pydantic", "numpy", "yaml", "rich", "matplotlib"} & modules


def test_help_names_every_verb_and_marks_what_is_not_built():
    lines = {line[2:22].strip(): line for line in help_text().splitlines() if line.startswith("  ")}
    for name, verb in VERBS.items():
        assert verb.audience in AUDIENCES and verb.help in lines[name]
        assert ("[not built yet]" in lines[name]) == (verb.target is None)


@pytest.mark.parametrize("name", [name for name, verb in VERBS.items() if verb.target])
def test_every_verb_has_its_function(name):
    assert callable(load_object(VERBS[name].target))


@pytest.mark.parametrize("name", [name for name, verb in VERBS.items() if verb.target])
def test_every_verb_tells_its_arguments_and_offers_json(name, capsys):
    with pytest.raises(SystemExit) as stop:
        main([*name.split(), "--help"])
    assert stop.value.code == 0
    out = capsys.readouterr().out
    assert out.startswith(f"usage: megavlm {name}") and "--json" in out


def test_a_verb_that_is_not_built_says_so(capsys, monkeypatch):
    monkeypatch.setitem(VERBS, "plan", VERBS["plan"]._replace(target=None))  # all of them are built by now
    assert main(["plan", "--json"]) == 1
    out, err = capsys.readouterr()
    assert "not built yet" in err
    assert json.loads(out)["error"]["exit_code"] == 1


@pytest.mark.parametrize(
    ("arguments", "proposal"),
    [(["trian", "x"], "'train'"), (["curate", "rnu"], "'curate run'"), (["dcotor"], "'doctor'")],
)
def test_an_unknown_verb_exits_2_and_proposes_the_nearest(arguments, proposal, capsys):
    assert main(arguments) == 2
    assert f"did you mean {proposal}?" in capsys.readouterr().err


def test_a_verb_without_relatives_lists_what_there_is(capsys):
    assert main(["xyzzyxyzzy"]) == 2
    assert "known: " in capsys.readouterr().err


def test_a_group_alone_lists_its_verbs(capsys):
    assert main(["recipes"]) == 0
    assert [line.split()[1] for line in capsys.readouterr().out.splitlines()] == ["list", "show", "diff"]


def test_it_runs_uninstalled_from_the_root():
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {"PYTHONPATH": "src"}
    command = [sys.executable, "-m", "megavlm.platform.cli", "--version"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and done.stdout.startswith("megavlm ")

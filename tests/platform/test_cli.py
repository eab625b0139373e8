"""The command line's shell: verbs of other packages."""

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.fixture
def other_package(tmp_path: Path) -> Path:
    """A folder for PYTHONPATH that holds an installed package with one verb."""
    (tmp_path / "greeter.py").write_text("def main(argv):\n    print('hello', *argv)\n    return 3\n")
    info = tmp_path / "greeter-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: greeter\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[megavlm.commands]\ngreet = greeter:main\n")
    return tmp_path


def call(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    path = f"{folder}:{Path(__file__).resolve().parents[2] / 'src'}"
    command = [sys.executable, "-m", "megavlm.platform.cli", *words]
    return subprocess.run(command, env={"PYTHONPATH": path}, capture_output=True, text=True)


def test_a_verb_of_another_package_runs_and_keeps_its_exit_code(other_package: Path) -> None:
    done = call(other_package, "greet", "you")
    assert (done.returncode, done.stdout) == (3, "hello you\n"), done.stderr


def test_it_is_listed(other_package: Path) -> None:
    assert "greet" in call(other_package, "--help").stdout


def test_without_it_the_verb_is_unknown(tmp_path: Path) -> None:
    done = call(tmp_path, "greet")
    assert done.returncode == 2 and "unknown verb 'greet'" in done.stderr

"""The copy of the code that a job runs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from megavlm.platform.runs import RunFolder
from megavlm.slurm.snapshot import Snapshot

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("platform", "kernels", "data_curation", "megatron_mm", "slurm")


def python(*words: str, path: str, folder: Path) -> str:
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run([sys.executable, *words], env=env, cwd=folder, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def checkout(folder: Path) -> Path:
    """What a checkout looks like: rooms at the top, linked from below src/megavlm."""
    (folder / "src" / "megavlm").mkdir(parents=True)
    for room in ROOMS:
        shutil.copytree(ROOT / room, folder / room, ignore=shutil.ignore_patterns("__pycache__"))
        (folder / "src" / "megavlm" / room).symlink_to(f"../../{room}")
    return folder / "src"


def test_a_snapshot_is_known_before_it_is_written_and_written_once(tmp_path):
    run, snapshot = RunFolder(tmp_path / "run"), Snapshot.of_running()
    assert not snapshot.folder(run).exists() and not run.root.exists()
    folder = snapshot.write(run)
    assert folder == snapshot.folder(run) == (tmp_path / "run" / "code" / snapshot.hash).absolute()
    made = folder.stat().st_mtime_ns
    assert Snapshot(dict(snapshot.files)).write(run) == folder and folder.stat().st_mtime_ns == made
    assert [path.name for path in folder.parent.iterdir()] == [snapshot.hash]
    found = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert found == snapshot.files and not any(path.is_symlink() for path in folder.rglob("*"))


def test_any_change_gives_another_hash():
    files = {"megavlm/a.py": b"1", "megavlm/b.py": b"2"}
    others = [{"megavlm/a.py": b"1"}, files | {"megavlm/b.py": b"3"}, {"megavlm/a.py": b"1", "megavlm/c.py": b"2"}]
    assert len({Snapshot(each).hash for each in [files, *others]}) == 4
    assert Snapshot(dict(reversed(files.items()))).hash == Snapshot(files).hash


def test_it_holds_what_the_package_reads_and_nothing_that_python_compiled():
    files = Snapshot.of_running().files
    for name in (
        "platform/cli.py",
        "platform/report/resources/report.html",
        "megatron_mm/recipes/nvlm-d-mini.yaml",
        "slurm/clusters/local-test.yaml",
        "slurm/snapshot.py",
    ):
        assert f"megavlm/{name}" in files
    assert not [name for name in files if "__pycache__" in name or name.endswith(".pyc") or "/." in name]


def test_the_snapshot_runs_although_the_package_is_installed_and_the_original_has_changed(tmp_path):
    source, run = checkout(tmp_path / "checkout"), tmp_path / "run"
    take = "from megavlm.platform.runs import RunFolder; from megavlm.slurm.snapshot import Snapshot; import sys; "
    folder = python(
        "-c", take + f"print(Snapshot.of_running().write(RunFolder({str(run)!r})))", path=str(source), folder=tmp_path
    )
    verbs = source / "megavlm" / "platform" / "verbs.py"
    verbs.write_text(verbs.read_text().replace("the shipped recipes", "edited since"))
    for path, there in ((str(source), "edited since"), (f"{folder.strip()}:{source}", "the shipped recipes")):
        assert there in python("-m", "megavlm.platform.cli", "--help", path=path, folder=tmp_path)


def test_no_module_comes_from_elsewhere_wherever_the_job_works(tmp_path):
    folder = Snapshot.of_running().write(RunFolder(tmp_path / "run"))
    code = (
        "import sys, megavlm.slurm.submit, megavlm.platform.config as config\n"
        "config.load_recipe('nvlm-d-mini')\n"
        "ours = [module for name, module in sys.modules.items() if name.startswith('megavlm')]\n"
        "print(*{module.__file__ for module in ours if getattr(module, '__file__', None)})"
    )
    for place in (tmp_path, ROOT, ROOT / "src"):
        files = python("-c", code, path=str(folder), folder=place).split()
        assert len(files) > 20 and all(Path(file).is_relative_to(folder) for file in files)


def test_a_torn_copy_never_counts(tmp_path):
    run = RunFolder(tmp_path / "run")
    (run.path("code")).mkdir(parents=True)
    (run.path("code") / ".0123456789abcdef.torn").mkdir()
    folder = Snapshot({"megavlm/a.py": b"1"}).write(run)
    assert (folder / "megavlm" / "a.py").read_bytes() == b"1"

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

import megavlm.platform.doctor as doctor
from megavlm.platform.cli import main


def examine(path: Path, *, python_path: Path | None = None) -> tuple[int, dict, str]:
    """Run doctor in a process of its own, with only `path` for commands; exit code, JSON, and what was imported."""
    code = (
        "import sys; from megavlm.platform.cli import main; code = main(['doctor', '--json'])\n"
        "print(*sorted(sys.modules), file=sys.stderr); sys.exit(code)"
    )
    folders = [str(python_path)] if python_path else []
    folders += [os.environ["PYTHONPATH"]] if "PYTHONPATH" in os.environ else []
    environment = {**os.environ, "PATH": str(path), "PYTHONPATH": os.pathsep.join(folders)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=60)
    return done.returncode, json.loads(done.stdout), done.stderr


def put_command(folder: Path, name: str, prints: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\necho '{prints}'\n")
    path.chmod(0o755)


def put_package(folder: Path, name: str, number: str, *folders: str) -> None:
    info = folder / f"{name}-{number}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {number}\n")
    for inside in (name, *folders):
        (folder / inside).mkdir(parents=True)
        (folder / inside / "__init__.py").write_text("raise RuntimeError('doctor must not import it')\n")


def test_it_names_what_is_installed_with_versions(tmp_path):
    code, facts, modules = examine(tmp_path)
    assert code == 0 and facts["ok"] and facts["problems"] == []
    assert facts["pieces"]["megatron-core"]["detail"] == version("megatron-core")
    assert facts["pieces"]["torch"] == {
        "state": "installed", "detail": version("torch"), "needed": True, "enables": "everything", "get": doctor.SELF,
    }  # fmt: skip
    assert facts["pieces"]["Chromium"]["state"] == facts["pieces"]["Slurm"]["state"] == "missing"
    assert not {"torch", "pydantic", "numpy", "megatron", "transformers"} & set(modules.split())


def test_it_finds_commands(tmp_path):
    put_command(tmp_path, "sbatch", "slurm-wlm 22.05.8")
    put_command(tmp_path, "chromium", "Chromium 156.0")
    put_command(tmp_path, "nvidia-smi", "NVIDIA H200, 143771 MiB, 580.1")
    _, facts, _ = examine(tmp_path)
    found = {name: facts["pieces"][name]["detail"] for name in ("Slurm", "Chromium", "NVIDIA GPU")}
    assert found == {
        "Slurm": "slurm-wlm 22.05.8", "Chromium": "Chromium 156.0", "NVIDIA GPU": "NVIDIA H200, 143771 MiB, 580.1",
    }  # fmt: skip


def test_a_driver_tool_that_fails_is_no_gpu(tmp_path):
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\necho 'NVIDIA-SMI has failed'; exit 9\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    assert examine(tmp_path)[1]["pieces"]["NVIDIA GPU"]["state"] == "missing"


def test_the_web_toolkit_named_apex_is_not_nvidias(tmp_path):
    put_package(tmp_path, "apex", "0.9.10.dev0", "apex/lib")
    code, facts, _ = examine(tmp_path, python_path=tmp_path)
    assert code == 3 and facts["problems"] == ["NVIDIA apex"]
    assert facts["pieces"]["NVIDIA apex"]["state"] == "wrong"
    assert "unrelated web toolkit" in facts["pieces"]["NVIDIA apex"]["detail"]


def test_nvidias_apex_is_recognised(tmp_path):
    put_package(tmp_path, "apex", "0.1", "apex/optimizers")
    code, facts, _ = examine(tmp_path, python_path=tmp_path)
    assert code == 0 and facts["pieces"]["NVIDIA apex"] | {"get": ""} == {
        "state": "installed", "detail": "0.1", "needed": False, "get": "",
        "enables": "megatron-core's fused optimizers and gradient accumulation",
    }  # fmt: skip


def test_a_package_is_found_under_any_of_its_names(tmp_path):
    assert doctor.package("surely-not-installed", "pytest")().detail == f"pytest {version('pytest')}"
    assert doctor.package("surely-not-installed")() == doctor.MISSING


def test_a_missing_needed_piece_exits_3_and_says_what_to_run(capsys, monkeypatch):
    absent = doctor.Piece("absent", doctor.package("surely-not-installed"), "all of it", "pip install it", needed=True)
    monkeypatch.setattr(doctor, "PIECES", (absent,))
    assert main(["doctor"]) == 3
    out = capsys.readouterr().out
    assert "missing   absent" in out and "pip install it" in out and "to mend: absent" in out


def test_the_table_agrees_with_the_project(tmp_path):
    """Every needed piece is a dependency in pyproject.toml, and the versions in commands are the pinned ones."""
    import tomllib

    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    declared = " ".join(project["dependencies"])
    needed = [piece.name for piece in doctor.PIECES if piece.needed]
    assert needed and all(name in declared for name in needed)
    command = next(piece.get for piece in doctor.PIECES if piece.name == "torch for CUDA")
    assert all(pin in command for pin in project["dependencies"] if pin.startswith(("torch==", "torchvision==")))


@pytest.mark.parametrize("piece", doctor.PIECES, ids=lambda piece: piece.name)
def test_every_piece_says_what_for_and_how(piece):
    assert piece.enables and piece.get

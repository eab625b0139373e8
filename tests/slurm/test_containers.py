"""The words that bring work into a container, and the recipes of the images (which nobody here can build)."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from megavlm.platform.errors import ConfigError
from megavlm.slurm.container import inside, mounted, python, srun_words
from megavlm.slurm.profile import ClusterProfile

FOLDER = Path(__file__).resolve().parents[2] / "slurm" / "containers"
BIN = Path(sys.executable).parent
SECTIONS = {"files", "post", "environment", "runscript", "labels", "help"}


def profile(kind: str, **changes) -> ClusterProfile:
    container = {"kind": kind, "image": "nvcr.io#team/image:1", "mounts": ["/data:/data:ro"], "options": ["--x"]}
    return ClusterProfile(name="here", container=container, **changes)


def test_without_a_container_nothing_is_added():
    bare = ClusterProfile(name="here")
    assert srun_words(bare) == [] and inside(bare, ["a", "b"]) == ["a", "b"] and python(bare, "/py") == "/py"
    assert mounted(bare, [Path("/a:b")]) == bare


def test_pyxis_is_told_through_srun():
    here = profile("pyxis")
    wanted = ["--container-image=nvcr.io#team/image:1", "--container-mounts=/data:/data:ro", "--x"]
    assert srun_words(here) == wanted and inside(here, ["a"]) == ["a"] and python(here, "/py") == "python3"


def test_apptainer_stands_around_the_command():
    here = profile("apptainer")
    wanted = ["apptainer", "exec", "--bind", "/data:/data:ro", "--x", "nvcr.io#team/image:1", "a", "b c"]
    assert srun_words(here) == [] and inside(here, ["a", "b c"]) == wanted
    assert inside(profile("apptainer", gpus_per_node=8), [])[2] == "--nv"


def test_folders_of_the_job_are_mounted_once_under_their_own_names():
    here = mounted(profile("pyxis"), [Path("/runs/a"), Path("/work"), Path("/work"), Path("/data")])
    assert here.container.mounts == ["/data:/data:ro", "/runs/a:/runs/a", "/work:/work"]
    for name in ("/runs/a,b", "/runs/a:b"):
        with pytest.raises(ConfigError, match=re.escape(name)):
            mounted(profile("apptainer"), [Path(name)])


def test_hadolint_finds_nothing():
    done = subprocess.run([BIN / "hadolint", FOLDER / "Dockerfile"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_the_apptainer_definition_has_its_parts_and_shellcheck_finds_nothing(tmp_path):
    header, sections = definition((FOLDER / "megavlm.def").read_text())
    assert header["Bootstrap"] == "docker" and re.fullmatch(r"[\w./-]+:[\w.-]+", header["From"])
    assert set(sections) == SECTIONS
    for line in sections["files"].split("\n"):
        source = line.split()[:1]
        assert not source or (FOLDER.parents[1] / source[0]).exists(), line
    for name in ("post", "environment", "runscript"):
        path = tmp_path / name
        path.write_text(f"#!/bin/sh\n{sections[name]}\n")
        done = subprocess.run([BIN / "shellcheck", path], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout


def test_both_say_that_they_are_unbuilt_and_bring_the_same():
    docker, apptainer = ((FOLDER / name).read_text() for name in ("Dockerfile", "megavlm.def"))
    assert docker.startswith("# Unbuilt") and "# Unbuilt" in apptainer[:400]
    pinned = r"[\w\[\]-]+==[\d.]+"
    assert set(re.findall(pinned, docker)) == set(re.findall(pinned, apptainer))
    assert re.search(r"FROM (\S+)", docker)[1] == re.search(r"From: (\S+)", apptainer)[1]
    assert "torch==2.13.0" in docker and "transformer-engine[pytorch]==" in docker


def definition(text: str) -> tuple[dict[str, str], dict[str, str]]:
    """The header's keys, and section -> its lines, of an Apptainer definition."""
    head, *parts = re.split(r"^%", text, flags=re.MULTILINE)
    header = dict(re.findall(r"^(\w+): (.+)$", head, flags=re.MULTILINE))
    sections = [part.partition("\n") for part in parts]
    return header, {name.strip(): body for name, _, body in sections}

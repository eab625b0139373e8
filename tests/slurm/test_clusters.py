"""The shipped cluster profiles, and the template against the schema it explains."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pydantic
import pytest
import yaml

from megavlm.slurm import checks
from megavlm.slurm.profile import ClusterProfile, load_profile, profiles
from megavlm.slurm.script import JobScript, render

FOLDER = Path(__file__).resolve().parents[2] / "slurm" / "clusters"


def keys(schema: type[pydantic.BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in schema.model_fields.items():
        yield prefix + name
        if isinstance(field.annotation, type) and issubclass(field.annotation, pydantic.BaseModel):
            yield from keys(field.annotation, f"{prefix}{name}.")


def written(tree: dict, prefix: str = "") -> Iterator[str]:
    for name, value in tree.items():
        yield prefix + name
        if isinstance(value, dict):
            yield from written(value, f"{prefix}{name}.")


def test_the_template_has_every_key_and_no_other_each_with_its_default():
    tree = yaml.safe_load((FOLDER / "template.yaml").read_text())
    assert sorted(written(tree)) == sorted(keys(ClusterProfile))
    given = load_profile(str(FOLDER / "template.yaml"))
    assert given == ClusterProfile(name="template", description=given.description)


def test_every_key_of_the_template_stands_below_a_comment_of_its_own_or_of_its_neighbours():
    lines = (FOLDER / "template.yaml").read_text().splitlines()
    bare = []
    for number, line in enumerate(lines):
        if re.match(r"\s*[a-z_]+:", line):
            block = lines[:number]
            while block and re.match(r"\s*[a-z_]+:", block[-1]):
                block.pop()
            bare += [] if block and block[-1].lstrip().startswith("#") else [line]
    assert bare == []


@pytest.mark.parametrize("name", ["local-test", "dgx-h100", "template"])
def test_a_shipped_profile_gives_a_script_that_shellcheck_finds_nothing_in(name, tmp_path):
    profile = load_profile(name)
    assert profiles()[name].resolve() == FOLDER / f"{name}.yaml"
    assert profile.name == name and profile.description
    checks.check_limits(profile, nodes=2, spares=1)
    here = Path("/runs/a")
    script = JobScript(here, "sft", profile, 2, 1, ["train", "x"], here / "code" / "0", here, "/bin/python", {})
    path = tmp_path / "sbatch.sh"
    path.write_text(render(script))
    done = subprocess.run([Path(sys.executable).parent / "shellcheck", path], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_the_one_for_large_machines_says_that_it_never_ran_there():
    assert "never run" in load_profile("dgx-h100").description


def test_the_one_for_tests_asks_for_no_gpu_and_one_process_a_node():
    profile = load_profile("local-test")
    assert (profile.gpus_per_node, profile.processes) == (0, 1)
    assert profile.environment == {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "eth0"}

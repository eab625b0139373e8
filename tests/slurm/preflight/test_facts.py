"""What a node tells of itself, on this machine."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from megavlm.slurm.preflight import facts
from megavlm.slurm.preflight.verb import main


def test_writing_is_measured_and_leaves_nothing(tmp_path):
    assert facts.write_rate(tmp_path, 1 << 20) > 1e5
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_no_folder_says_so(tmp_path):
    with pytest.raises(OSError):
        facts.write_rate(tmp_path / "absent", 1 << 20)


def test_versions_are_those_of_the_packages_without_importing_them():
    code = (
        "import json, sys; from megavlm.slurm.preflight import facts, node; "
        "print(json.dumps([facts.versions(), sorted(sys.modules)]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    versions, modules = json.loads(done.stdout)
    assert versions["python"] == sys.version.split()[0] and versions["torch"] and versions["megatron-core"]
    assert not {"torch", "numpy", "megatron"} & set(modules)


def test_the_snapshot_is_told_by_its_folder(tmp_path):
    file = tmp_path / "code" / "0123abcd" / "megavlm" / "slurm" / "preflight" / "facts.py"
    assert facts.code_hash(file) == "0123abcd"
    assert facts.code_hash(tmp_path / "src" / "megavlm" / "slurm" / "preflight" / "facts.py") is None


def test_this_machine_alone(tmp_path, capsys):
    assert main(["--out", str(tmp_path), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    (node,) = told["nodes"]
    assert told["ok"] and told["bad"] == {} and node["figures"]["disk"] > 0
    assert set(told) == {"cluster", "ok", "bad", "notes", "median", "usual", "nodes", "records"}
    assert main(["--out", str(tmp_path)]) == 0
    assert "this node is fit" in capsys.readouterr().out


@pytest.mark.parametrize("words", [["--nodes", "2"], ["--nodelist", "n1"], ["--partition", "main"]])
def test_nodes_without_a_cluster_are_refused(words):
    from megavlm.platform.errors import ConfigError

    with pytest.raises(ConfigError, match="which cluster"):
        main(words)

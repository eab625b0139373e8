"""A step's exit code: what the demo makes of it. The verbs are another package's, found as any third party's are."""

from pathlib import Path

import pytest

from megavlm.platform.demo.steps import verb
from megavlm.platform.errors import MegaVLMError, SavedResumable


@pytest.fixture(autouse=True)
def other_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "leaver.py").write_text("def main(argv):\n    return int(argv[0])\n")
    info = tmp_path / "leaver-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: leaver\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[megavlm.commands]\nleave = leaver:main\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))


def test_a_gates_verdict_is_handed_on(tmp_path: Path) -> None:
    assert verb(["leave", "3"], tmp_path, allowed=(0, 3, 5)) == 3


def test_saved_on_request_is_no_failure(tmp_path: Path) -> None:
    with pytest.raises(SavedResumable):
        verb(["leave", "4"], tmp_path, allowed=(0, 3, 5))


def test_a_failure_says_which_verb_and_that_it_goes_on(tmp_path: Path) -> None:
    with pytest.raises(MegaVLMError, match="`megavlm leave 1 ...` failed with exit code 1"):
        verb(["leave", "1"], tmp_path)

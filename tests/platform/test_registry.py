"""Names to objects: what is missing is named."""

import sys
from pathlib import Path

import pytest

from megavlm.platform.errors import ConfigError, MissingPackage
from megavlm.platform.registry import Registry, load_object


@pytest.fixture(autouse=True)
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "whole_point.py").write_text("class Whole: pass\n")
    (tmp_path / "needs_more.py").write_text("import surely_not_installed\n")
    (tmp_path / "broken_point.py").write_text("import os\nos.no_such_thing\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    for name in ("whole_point", "needs_more", "broken_point"):
        sys.modules.pop(name, None)


def test_an_object_is_found() -> None:
    assert load_object("whole_point:Whole").__name__ == "Whole"


@pytest.mark.parametrize(
    ("target", "kind", "text"),
    [
        ("whole_point:Hole", ConfigError, "did you mean 'Whole'"),
        ("no_such_module:X", ConfigError, "there is no module 'no_such_module'"),
        ("needs_more:X", MissingPackage, "package 'surely_not_installed'"),
    ],
)
def test_what_is_missing_is_named(target: str, kind: type[Exception], text: str) -> None:
    with pytest.raises(kind) as error:
        load_object(target)
    assert text in str(error.value)


def test_an_error_of_the_module_itself_is_not_taken_for_a_missing_name() -> None:
    with pytest.raises(AttributeError, match="no_such_thing"):
        load_object("broken_point:X")


def test_an_unknown_point_proposes_the_nearest() -> None:
    with pytest.raises(ConfigError) as error:
        Registry("encoder", {"internvit": "whole_point:Whole"}).load("internvitt")
    assert "did you mean 'internvit'" in str(error.value)

from __future__ import annotations

import pytest

from megavlm.platform.config import recipe as recipes

SCHEMA = """
from megavlm.platform.config import Config, point, points
from megavlm.platform.errors import ConfigError
from megavlm.platform.registry import Registry
from pydantic import model_validator

class Small(Config):
    name: str
    width: int = 8
    rate: float = 0.5

class Large(Config):
    name: str
    width: int = 64
    layers: int = 2

class Mixture(Config):
    name: str
    parts: list[Small] = []

AXIS = Registry("encoder", {"small": "toy_schema:Small", "large": "toy_schema:Large", "mixture": "toy_schema:Mixture"})

class Inner(Config):
    depth: int = 1
    ratio: float = 0.25

class Model(Config):
    inner: Inner = Inner()
    encoder: point(AXIS)
    extras: points(AXIS) = ["small"]
    flag: bool = False
    note: str | None = None

    @model_validator(mode="after")
    def _deep_enough(self):
        if self.inner.depth < 1:
            raise ConfigError(f"depth {self.inner.depth} is no depth", where="inner.depth", fix="set depth >= 1")
        return self
"""


@pytest.fixture(autouse=True, scope="session")
def toy_schema_on_path(tmp_path_factory):
    """A module `toy_schema` with one axis of two points: these tests are about the mechanism, not about our models."""
    folder = tmp_path_factory.mktemp("schema")
    (folder / "toy_schema.py").write_text(SCHEMA)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        patch.setitem(recipes.SECTIONS, "toy", "toy_schema:Model")
        yield


@pytest.fixture
def write(tmp_path):
    """write(text, name) -> the path of a recipe file, as text."""

    def to_file(text: str, name: str = "mine.yaml") -> str:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return str(path)

    return to_file

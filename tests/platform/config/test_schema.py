"""Values that may be none: `off` says so, and nothing else is touched by it."""

from __future__ import annotations

import pytest

from megavlm.data_curation.stages.deduplicate import Deduplicate
from megavlm.platform.config import Config, load_recipe
from megavlm.platform.errors import ConfigError


class Options(Config):
    radius: int | None = 31
    share: float | None = None
    exact: bool = True
    maybe: bool | None = None
    count: int = 3


def test_off_is_none_where_there_may_be_none() -> None:
    told = Options.parse({"radius": False, "share": False, "exact": False, "maybe": False})
    assert (told.radius, told.share, told.exact, told.maybe) == (None, None, False, False)
    assert Options.parse({}).radius == 31
    assert Options.parse({"radius": 0}).radius == 0
    with pytest.raises(ConfigError, match="'radiu'"):
        Options.parse({"radiu": False})


def test_a_recipe_may_say_off_and_says_it_again_when_it_is_read_back(tmp_path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("base: eve-laion-mini\n")
    for word in ("off", "false"):
        recipe = load_recipe(str(file), [f"curation.stages.deduplicate.hash_radius={word}"])
        assert recipe.section("curation").stages["deduplicate"].hash_radius is None
    assert Deduplicate.parse({"hash_radius": False, "epsilon": 0.1}).hash_radius is None

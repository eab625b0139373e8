"""Parts of axes: which weights they have, by names written out here."""

from __future__ import annotations

import pytest

from megavlm.megatron_mm.config import Stage
from megavlm.megatron_mm.parts import holds, narrowest
from megavlm.platform.errors import ConfigError

STAGE = {
    "mixture": {"weights": {"a": 1.0}, "sequence_length": 8, "packs_per_batch": 1},
    "steps": 1,
    "optimizer": {"lr": 1.0, "groups": {"encoder": {"lr": 0.5}, "encoder.sam": {"lr": 0.25}}},
}


@pytest.mark.parametrize(
    ("part", "weight", "has"),
    [
        ("encoder", "experts.sam.neck.conv1.weight", True),
        ("encoder.sam", "experts.sam.neck.conv1.weight", True),
        ("encoder.neck", "experts.sam.neck.conv1.weight", False),
        ("encoder.sa", "experts.sam.neck.conv1.weight", False),
        ("encoder.adapter", "adapter.0.weight", True),
        ("connector.sam", "experts.sam.neck.conv1.weight", False),
    ],
)
def test_which_weights_a_part_has(part: str, weight: str, has: bool) -> None:
    assert holds(part, "encoder", weight) == has


def test_a_part_goes_before_its_axis() -> None:
    names = ["encoder", "encoder.sam", "connector"]
    assert narrowest(names, "encoder", "experts.sam.x") == "encoder.sam"
    assert narrowest(names, "encoder", "experts.clip.x") == "encoder"
    assert narrowest(names, "decoder", "experts.clip.x") is None
    stage = Stage.parse(STAGE | {"train": ["encoder"]})
    assert [stage.optimizer.of(name)[0] for name in ("encoder.sam", "encoder", None)] == [0.25, 0.5, 1.0]


@pytest.mark.parametrize(
    ("keys", "match"),
    [
        ({"train": ["encoder", "encoder.sam"]}, "encoder.sam is named twice"),
        ({"train": ["connector", "connector"]}, "connector is named twice"),
        ({"train": ["connector"], "fresh": ["connector"]}, "no stage comes before"),
        ({"train": ["projector"]}, "train.0|should match"),
    ],
)
def test_parts_that_mean_nothing(keys: dict[str, list[str]], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        Stage.parse(STAGE | keys)

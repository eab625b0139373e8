"""What all experts share: their base classes, and how their modules are built."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from megavlm.megatron_mm.config import Parallel
from megavlm.megatron_mm.encoders import ENCODERS
from megavlm.megatron_mm.encoders.building import without_values
from megavlm.megatron_mm.encoders.expert import Expert, PatchExpert

SHAPE = {"name": "half", "image_size": 8, "patch_size": 4, "layers": 1, "hidden": 4, "heads": 1, "ffn": 4}
SHAPE |= {"mean": (0.5,) * 3, "std": (0.5,) * 3}


def test_an_expert_that_does_not_say_all_is_refused() -> None:
    class Half(PatchExpert):
        def parameters(self) -> int:
            return 0

    with pytest.raises(TypeError, match="abstract methods '?build'?, '?costs'?"):
        Half.parse(SHAPE)


def test_weights_are_of_the_type_and_nothing_is_drawn() -> None:
    state = torch.get_rng_state()
    module = without_values(lambda: nn.Sequential(nn.Linear(3, 5), nn.LayerNorm(5)), torch.bfloat16)
    assert torch.equal(torch.get_rng_state(), state)
    assert {(p.dtype, p.device.type) for p in module.parameters()} == {(torch.bfloat16, "cpu")}
    with torch.device("meta"):
        elsewhere = without_values(lambda: nn.Linear(3, 5), torch.float32)
    assert elsewhere.weight.is_meta


EXPERTS = [name for name in ENCODERS if issubclass(ENCODERS.load(name), Expert)]


@pytest.mark.parametrize("name", EXPERTS)
def test_fits_every_layout_and_splits_nothing(name: str) -> None:
    spec = ENCODERS.load(name)()
    assert isinstance(spec, Expert) and spec.name == name
    spec.check(Parallel(tp=7, pp=3))
    assert spec.fp8_widths(Parallel()) == [] and spec.parts == {}


def test_eagles_are_among_them() -> None:
    assert set(EXPERTS) >= {"clip", "convnext", "sam", "eva02", "pix2struct", "dinov2"}

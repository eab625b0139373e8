"""Channel concatenation against torch's interpolation and LLaVA's MLP, and against Eagle's published sizes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from megavlm.megatron_mm.connectors.channel_concat import ChannelConcat
from megavlm.megatron_mm.contracts import BuildContext
from megavlm.megatron_mm.maps import MapShape

MAPS = (MapShape("clip", 24, 3, 3, 6), MapShape("convnext", 4, 4, 4, 8), MapShape("eva", 24, 7, 5, 10))
CLIP, CONVNEXT = MapShape("clip", 24, 24, 24, 1024), MapShape("convnext", 4, 32, 32, 3072)
EVA, PIX2STRUCT = MapShape("eva", 24, 64, 64, 1024), MapShape("pix2struct", 18, 45, 45, 1536)
SAM = MapShape("sam", 24, 32, 32, 1024)
MILLIONS = {"clip": 303.5, "convnext": 846.5, "sam": 307.7, "eva": 303.4, "pix2struct": 512.8}  # the experts


def test_equals_its_layers(one_process: BuildContext, drawn, features) -> None:
    spec, given = ChannelConcat(grid=4), features(MAPS, 2)
    model = drawn(spec.build(one_process, MAPS, width=10))
    maps = [each.tiles.double().movedim(-1, 1) for each in given]
    x = torch.cat([F.interpolate(each, size=(4, 4), mode="bilinear", align_corners=True) for each in maps], dim=1)
    x = x.flatten(2).transpose(1, 2).reshape(2 * 16, 24)
    w = {name: p.double() for name, p in model.projector.named_parameters()}
    wanted = F.linear(F.gelu(F.linear(x, w["0.weight"], w["0.bias"])), w["2.weight"], w["2.bias"])
    tokens = model(given)
    torch.testing.assert_close(tokens.values.double(), wanted, rtol=1e-5, atol=1e-5)
    assert tokens.segments.tolist() == [0] * 16 + [1] * 16
    assert spec.tokens_per_tile(MAPS) == 16
    assert spec.parameters(MAPS, 10) == sum(p.numel() for p in model.parameters())
    assert spec.flops(MAPS, 10).forward == 2 * 16 * (24 * 10 + 10 * 10)


def test_no_tiles(one_process: BuildContext, of_no_tiles) -> None:
    of_no_tiles(ChannelConcat(grid=4).build(one_process, MAPS, width=10), MAPS, 10)


@pytest.mark.parametrize(
    ("maps", "width", "millions"),
    [
        ((CLIP, CONVNEXT), 4096, 1184),
        ((CLIP, CONVNEXT, SAM), 4096, 1495),
        ((CLIP, CONVNEXT), 1024, 1155.2),
        ((CLIP, CONVNEXT, EVA, PIX2STRUCT), 1024, 1974.1),
        ((CLIP, CONVNEXT, SAM, EVA, PIX2STRUCT), 1024, 2282.8),
    ],
    ids=["table 4, two", "table 4, three", "figure 4, X2", "figure 4, X4", "figure 4, X5"],
)
def test_sizes_of_eagles_studies(maps: tuple[MapShape, ...], width: int, millions: float) -> None:
    """With their experts. Figure 4 counts an MLP that is 1024 wide."""
    experts = sum(MILLIONS[each.expert] for each in maps)
    ours = ChannelConcat().parameters(maps, width) / 1e6 + experts
    assert ours == pytest.approx(millions, abs=1 if width == 4096 else 0.2)


def test_size_of_the_projector_of_two() -> None:
    assert ChannelConcat().parameters((CLIP, CONVNEXT), 4096) / 1e6 == pytest.approx(33.56, abs=0.01)
    assert ChannelConcat().tokens_per_tile((CLIP, CONVNEXT)) == 1024

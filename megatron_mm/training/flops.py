"""Model FLOPs of a step, and the peak to hold them against. Arithmetic: loads no torch.

Counted is what the samples need, whatever the layout does: causal attention is half of the square, over each sample's
own length; padding and recomputation count nothing; what is frozen counts its forward pass, and the way through it
where gradients have to come past; an encoder that is trained in part counts its backward pass by the trained share of
its parameters. With all trained that is 6 x (parameters - input embedding) per token + attention, the convention of
Megatron-Bridge's published TFLOP/s per GPU.
"""

from __future__ import annotations

import re
from collections.abc import Collection

from megavlm.platform.images import Size

from ..config import ModelConfig
from ..data.amounts import Amounts
from ..parts import OWNERS

# Dense bf16 TFLOP/s by words of the device's name, from NVIDIA's data sheets (half of "with sparsity" where they state
# that): A100 (nvidia-a100-datasheet), A30, A10, A40, L4, L40, L40S, H100 (SXM, PCIe, NVL), H200 (SXM, NVL), GH200,
# B200 and GB200 (HGX B200 and GB200 NVL72: 36 and 360 PFLOP/s with sparsity for 8 and 72 of them).
PEAKS = {
    "A100": 312.0,
    "A800": 312.0,
    "A30": 165.0,
    "A40": 149.7,
    "A10": 125.0,
    "L4": 121.0,
    "L40": 181.0,
    "L40S": 362.0,
    "H100": 989.4,
    "H100 PCIe": 756.0,
    "H100 NVL": 835.5,
    "H800": 989.4,
    "H200": 989.4,
    "H200 NVL": 835.5,
    "GH200": 989.4,
    "B200": 2250.0,
    "GB200": 2500.0,
}


def peak_tflops(device: str) -> float | None:
    """Dense bf16 peak in TFLOP/s of a device by its name ("NVIDIA H100 80GB HBM3"); None for one not known."""
    words = set(re.findall(r"[A-Za-z0-9]+", device))
    known = [name for name in PEAKS if set(name.split()) <= words]
    return PEAKS[max(known, key=lambda name: len(name.split()))] if known else None


def step_flops(model: ModelConfig, train: Collection[str], of: Amounts) -> float:
    """Forward and backward FLOPs of one global batch over all devices, with the parts `train` trained."""
    decoder = model.decoder.flops(of.tokens, of.squares)
    each = model.tokens_per_tile
    cross = model.injection.flops(of.seeing_tokens, of.context_tiles * each, of.pairs * each, model.decoder)
    total = decoder.forward + cross.forward
    share = {axis: model.trained_share(axis, train) for axis in OWNERS}
    for objective in model.objectives:
        own = objective.flops(
            model.decoder, sum(tiles * objective.cells(model, size) for tiles, size in _tiles(model, of))
        )
        total += of.tiles * objective.teacher_flops() + own.forward
        total += own.backward(share["objectives"] > 0, passes=any(share.values()))
    for tiles, size in _tiles(model, of):
        seen = model.encoder.at(*size)
        encoder, connector = seen.flops(), model.connector.flops(seen.maps, model.decoder.hidden)
        total += tiles * (encoder.forward + connector.forward)
        total += tiles * encoder.backward(trained=True, passes=False) * share["encoder"]
        total += tiles * connector.backward(share["connector"] > 0, passes=share["encoder"] > 0)
    total += cross.backward(share["injection"] > 0, passes=True) if train else 0
    if share["decoder"]:
        return total + decoder.backward(trained=True, passes=True)
    back = model.decoder.flops(of.seeing_tokens, of.seeing_squares)  # text alone leads to nothing that learns
    return total + back.backward(trained=False, passes=any(share.values()))


def visual_tokens(model: ModelConfig, of: Amounts) -> int:
    """Visual tokens of all tiles of a global batch."""
    return sum(tiles * model.tokens_of(size) for tiles, size in _tiles(model, of))


def _tiles(model: ModelConfig, of: Amounts) -> list[tuple[int, Size]]:
    """How many tiles there are of each size."""
    if model.tiling.side is not None:
        return [(of.tiles, (model.tiling.side, model.tiling.side))]
    return [(count * image.tiles, model.tiling.size(image)) for image, count in of.cuts]

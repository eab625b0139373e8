"""What the tests of the experts share: layers in plain torch over weights by name, and what is asked of each expert."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from megatron.core.transformer.module import MegatronModule
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from megavlm.megatron_mm import backend
from megavlm.megatron_mm.backend.transformer import transformer_config
from megavlm.megatron_mm.contracts import BuildContext

HERE = BuildContext(torch.float32)
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CLIP = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)

Weights = dict[str, Tensor]
Shapes = dict[str, tuple[int, ...]]


def drawn(shapes: Shapes, deviation: float = 0.3) -> Weights:
    """Random tensors by the names of a checkpoint, norms, biases and layer scales too."""
    draw = torch.Generator().manual_seed(1)
    return {name: deviation * torch.randn(shape, generator=draw) for name, shape in shapes.items()}


def random_tiles(n: int, side: int) -> Tensor:
    """uint8 [n, 3, side, side]."""
    return torch.randint(0, 256, (n, 3, side, side), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def normalised(tiles: Tensor, mean_std: tuple[tuple[float, ...], tuple[float, ...]]) -> Tensor:
    """Bytes as float64, RGB in 0..1 less the mean, divided by the deviation."""
    mean, std = (torch.tensor(values).double().view(3, 1, 1) for values in mean_std)
    return (tiles.double() / 255 - mean) / std


def inside(w: Weights, prefix: str) -> Weights:
    """The weights of one layer, by their names in it."""
    return {name.removeprefix(prefix): tensor for name, tensor in w.items() if name.startswith(prefix)}


def norm(w: Weights, name: str, x: Tensor, eps: float = 1e-6) -> Tensor:
    x = x - x.mean(-1, keepdim=True)
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * w[f"{name}.weight"] + w[f"{name}.bias"]


def linear(w: Weights, name: str, x: Tensor) -> Tensor:
    return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]


def gelu(x: Tensor) -> Tensor:
    return x * 0.5 * (1 + torch.erf(x / 2**0.5))


def check_counts(spec: Any, n: int = 2) -> None:
    """The spec's FLOPs and parameters are those that torch counts."""
    with torch.device("meta"), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model = spec.build(HERE)
        model(torch.empty(n, 3, spec.image_size, spec.image_size, dtype=torch.uint8))
    assert counter.get_total_flops() == n * spec.flops().forward
    assert sum(p.numel() for p in model.parameters()) == spec.parameters()


def check_recomputing(
    built: Callable[[BuildContext], Any], inner: Callable[[Any], nn.Module], tiles: Tensor, idle: tuple[str, ...] = ()
) -> None:
    """A layer's `inner` part runs again; values and gradients stay. None of them is zero, but perhaps the `idle` ones.

    `idle`: how the names end of parameters that change nothing.
    """
    found: list[Weights] = []
    runs: list[str] = []
    for recompute in ("none", "full"):
        model = built(BuildContext(torch.float32, recompute=recompute))  # type: ignore[arg-type]
        inner(model).register_forward_hook(lambda *_, kind=recompute: runs.append(kind))
        feature = model(tiles)[0]
        feature.values.square().sum().backward()
        found.append({"values": feature.values} | {name: p.grad for name, p in model.named_parameters()})
    assert runs == ["none", "full", "full"]
    assert all(torch.equal(tensor, found[1][name]) for name, tensor in found[0].items())
    assert all(tensor.any() for name, tensor in found[0].items() if not name.endswith(idle))


def gradient_of_first_cell(model: Any, tiles: Tensor) -> Tensor:
    """[3, S, S]: that of tile 1's first cell with respect to tile 1; no other tile has one."""
    pixels = tiles.float().requires_grad_()
    model(pixels)[0].tiles[1, 0, 0].square().sum().backward()
    assert pixels.grad is not None
    assert not pixels.grad[:1].any() and not pixels.grad[2:].any()
    return pixels.grad[1]


def initialised(spec: Any, ctx: BuildContext) -> Any:
    """The encoder with first weights, as part of a model."""
    tower: Any = MegatronModule(transformer_config(ctx, num_layers=1, hidden_size=8, num_attention_heads=1))
    tower.encoder = spec.build(ctx)
    backend.initialise(tower, seed=1)
    return tower.encoder

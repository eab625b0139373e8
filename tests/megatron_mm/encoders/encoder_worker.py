"""InternViT as published, in plain torch; and what the ranks of test_encoders_parallel.py run.

Tensors have the published checkpoint's names and layout; `fill` puts them into a model of ours on any layout.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.mapping import ShardedTensor
from torch import Tensor

from megavlm.megatron_mm import backend
from megavlm.megatron_mm.checkpoints.forked import as_result
from megavlm.megatron_mm.checkpoints.safe_load import load_state
from megavlm.megatron_mm.config import ModelConfig, Parallel
from megavlm.megatron_mm.encoders.internvit import InternViT
from megavlm.megatron_mm.model import build_model
from megavlm.megatron_mm.tower import VisionTower

PATCH, SIDE, SEED = 7, 28, 3
SMALL = {"image_size": SIDE, "patch_size": PATCH, "layers": 2, "ffn": 64}
BIG = {**SMALL, "hidden": 50, "heads": 25}  # the 6B's heads
CASES = {
    "6B": BIG,
    "6B with dummy heads": {**BIG, "dummy_heads": 7},
    "300M": {**SMALL, "hidden": 32, "heads": 4, "norm": "layer", "qk_norm": False, "qkv_bias": True},
    "other positions": {**BIG, "dummy_heads": 7, "trained_size": 42},
}
SPLITS = ["6B with dummy heads", "300M"]
TOWERS: dict[str, dict[str, Any]] = {
    "internvit": {**BIG, "dummy_heads": 7},
    "clip": {**SMALL, "hidden": 32, "heads": 4, "layers": 3},
    "siglip": {**SMALL, "hidden": 32, "heads": 4, "layers": 3, "layer": -1},
}
TOWERS |= {  # of encoders that are whole on every rank, and of one that is split
    "mixture": {
        "image_size": SIDE,
        "experts": {
            "split": {"name": "internvit", **TOWERS["internvit"]},
            "clip": {"name": "clip", **TOWERS["clip"], "image_size": 14},
            "convnext": {"name": "convnext", "image_size": 32, "depths": [1, 1, 1, 1], "dims": [8, 8, 8, 12]},
        },
    },
    "llava_hr": {
        "image_size": SIDE,
        "low": {"name": "clip", **TOWERS["clip"], "layer": -1, "class_token": "dropped"},
        "high": {"name": "internvit", **TOWERS["internvit"]},
        "after": [1, 2],
    },
}
CONNECTORS = {"mixture": {"name": "channel_concat", "grid": 4}}


def tiles(n: int = 3) -> Tensor:
    return torch.randint(0, 256, (n, 3, SIDE, SIDE), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def published(case: str) -> dict[str, Tensor]:
    """Random tensors by the names of InternViT's checkpoint, without dummy heads. Norms and biases are random too."""
    spec = InternViT(**CASES[case])
    h, side = spec.hidden, (spec.trained_size or SIDE) // PATCH
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.class_embedding": (1, 1, h),
        "embeddings.patch_embedding.weight": (h, 3, PATCH, PATCH),
        "embeddings.patch_embedding.bias": (h,),
        "embeddings.position_embedding": (1, 1 + side * side, h),
    }
    layer: dict[str, tuple[int, ...]] = {
        "attn.qkv.weight": (3 * h, h), "attn.proj.weight": (h, h), "attn.proj.bias": (h,),
        "norm1.weight": (h,), "norm2.weight": (h,), "ls1": (h,), "ls2": (h,),
        "mlp.fc1.weight": (spec.ffn, h), "mlp.fc1.bias": (spec.ffn,),
        "mlp.fc2.weight": (h, spec.ffn), "mlp.fc2.bias": (h,),
    }  # fmt: skip
    if case == "300M":
        layer |= {"attn.qkv.bias": (3 * h,), "norm1.bias": (h,), "norm2.bias": (h,)}
    else:
        layer |= {"attn.q_norm.weight": (h,), "attn.k_norm.weight": (h,)}
    shapes |= {f"encoder.layers.{i}.{name}": shape for i in range(spec.layers) for name, shape in layer.items()}
    draw = torch.Generator().manual_seed(2)
    return {name: 0.3 * torch.randn(shape, generator=draw) for name, shape in shapes.items()}


def statement(w: dict[str, Tensor], pixels: Tensor, heads: int, eps: float = 1e-6) -> Tensor:
    """The published forward pass in float64: uint8 [n, 3, H, W] -> [n, patches, hidden]."""
    w = {name.removeprefix("embeddings."): tensor.double() for name, tensor in w.items()}
    mean, std = (torch.tensor(v).double().view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    x = F.conv2d((pixels / 255.0 - mean) / std, w["patch_embedding.weight"], w["patch_embedding.bias"], stride=PATCH)
    x = x.flatten(2).transpose(1, 2)
    first, rest = w["position_embedding"].split([1, w["position_embedding"].shape[1] - 1], dim=1)
    side = round(rest.shape[1] ** 0.5)
    rest = rest.view(1, side, side, -1).permute(0, 3, 1, 2)
    rest = F.interpolate(rest, size=(SIDE // PATCH,) * 2, mode="bicubic", align_corners=False).flatten(2)
    x = torch.cat([w["class_embedding"] + first + 0 * x[:, :1], x + rest.transpose(1, 2)], dim=1)
    for i in range(2):
        p = {name.removeprefix(f"encoder.layers.{i}."): t for name, t in w.items()}
        x = x + p["ls1"] * attention(p, normed(p, "norm1", x, eps), heads, eps)
        h = F.linear(normed(p, "norm2", x, eps), p["mlp.fc1.weight"], p["mlp.fc1.bias"])
        h = h * 0.5 * (1 + torch.erf(h / 2**0.5))
        x = x + p["ls2"] * F.linear(h, p["mlp.fc2.weight"], p["mlp.fc2.bias"])
    return x[:, 1:]


def normed(p: dict[str, Tensor], name: str, x: Tensor, eps: float) -> Tensor:
    """LayerNorm where there is a bias, RMSNorm where there is none."""
    bias = p.get(f"{name}.bias")
    x = x if bias is None else x - x.mean(-1, keepdim=True)
    x = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * p[f"{name}.weight"]
    return x if bias is None else x + bias


def attention(p: dict[str, Tensor], x: Tensor, heads: int, eps: float) -> Tensor:
    n, tokens, width = x.shape
    q, k, v = F.linear(x, p["attn.qkv.weight"], p.get("attn.qkv.bias")).chunk(3, dim=-1)  # rows [q|k|v][head][dim]
    if "attn.q_norm.weight" in p:
        q, k = normed(p, "attn.q_norm", q, eps), normed(p, "attn.k_norm", k, eps)
    q, k, v = (t.view(n, tokens, heads, -1).transpose(1, 2) for t in (q, k, v))
    scores = (q @ k.transpose(-1, -2) / (width // heads) ** 0.5).softmax(-1)
    return F.linear((scores @ v).transpose(1, 2).flatten(2), p["attn.proj.weight"], p["attn.proj.bias"])


OURS = {
    "attn.q_norm.weight": "self_attention.q_norm.weight", "attn.k_norm.weight": "self_attention.k_norm.weight",
    "attn.proj.weight": "self_attention.linear_proj.weight", "attn.proj.bias": "self_attention.linear_proj.bias",
    "attn.qkv.weight": "self_attention.linear_qkv.weight", "attn.qkv.bias": "self_attention.linear_qkv.bias",
    "norm1.weight": "input_layernorm.weight", "norm1.bias": "input_layernorm.bias",
    "norm2.weight": "pre_mlp_layernorm.weight", "norm2.bias": "pre_mlp_layernorm.bias",
    "ls1": "self_attn_bda.scale", "ls2": "mlp_bda.scale",
    "mlp.fc1.weight": "mlp.linear_fc1.weight", "mlp.fc1.bias": "mlp.linear_fc1.bias",
    "mlp.fc2.weight": "mlp.linear_fc2.weight", "mlp.fc2.bias": "mlp.linear_fc2.bias",
}  # fmt: skip


def in_our_layout(w: dict[str, Tensor], spec: InternViT) -> dict[str, Tensor]:
    """Whole tensors by our global names: qkv rows head by head, zeros behind the real heads, layers stacked."""
    whole = {
        "embedding.class_token": w["embeddings.class_embedding"].flatten(),
        "embedding.patches.weight": w["embeddings.patch_embedding.weight"],
        "embedding.patches.bias": w["embeddings.patch_embedding.bias"],
        "embedding.positions": w["embeddings.position_embedding"][0],
    }
    dummies = spec.dummy_heads * spec.hidden // spec.heads
    for theirs, ours in OURS.items():
        if f"encoder.layers.0.{theirs}" not in w:
            continue
        each = [w[f"encoder.layers.{i}.{theirs}"] for i in range(spec.layers)]
        if ".qkv." in theirs:
            each = [t.view(3, spec.heads, -1, *t.shape[1:]).transpose(0, 1).flatten(0, 2) for t in each]
        padding = {"attn.qkv": 3 * dummies, "attn.q_n": dummies, "attn.k_n": dummies}.get(theirs[:8], 0)
        each = [torch.cat([t, t.new_zeros(padding, *t.shape[1:])]) for t in each]
        if theirs == "attn.proj.weight":
            each = [torch.cat([t, t.new_zeros(len(t), dummies)], dim=1) for t in each]
        whole[f"block.layers.{ours}"] = torch.stack(each)
    return whole


@torch.no_grad()
def fill(model: torch.nn.Module, whole: dict[str, Tensor]) -> None:
    """This rank's part of every tensor."""
    tensors = [value for value in model.sharded_state_dict().values() if isinstance(value, ShardedTensor)]
    assert {tensor.key for tensor in tensors} == set(whole)
    for tensor in tensors:
        places = zip(tensor.global_offset, (1,) * tensor.prepend_axis_num + tensor.local_shape, strict=True)
        part = whole[tensor.key][tuple(slice(start, start + size) for start, size in places)]
        tensor.data.copy_(part.view_as(tensor.data))


def features(case: str, parallel: Parallel) -> Tensor:
    spec = InternViT(**CASES[case])
    model = spec.build(backend.build_context(parallel))
    fill(model, in_our_layout(published(case), spec))
    (feature,) = model(tiles())
    return feature.values.detach()


def tower(name: str, parallel: Parallel) -> VisionTower:
    """Small, its weights drawn."""
    model = ModelConfig.parse(
        {
            "tiling": {"tile": SIDE},
            "encoder": {"name": name, **TOWERS[name]},
            "connector": CONNECTORS.get(name, {"name": "pixel_shuffle_mlp", "hidden": 48}),
            "injection": {"name": "inline"},
            "decoder": {"name": "qwen2", "layers": 1, "hidden": 32, "heads": 4, "kv_heads": 2, "ffn": 48, "vocab": 96},
        }
    )
    built = build_model(model, backend.build_context(parallel))
    backend.initialise(built, SEED)
    return built.tower


def save(built: VisionTower, folder: Path) -> None:
    as_result()  # or megatron-core starts a process that imports all this once more
    folder.mkdir(parents=True, exist_ok=True)
    dist_checkpointing.save(built.sharded_state_dict(), str(folder))


def loads_alike(built: VisionTower, folder: Path) -> bool:
    """Whether a checkpoint holds exactly these weights, by this rank's part of them."""
    wanted = {name: p.detach().clone() for name, p in built.named_parameters()}
    with torch.no_grad():
        for p in built.parameters():
            p.fill_(float("nan"))
    built.load_state_dict(load_state(built.sharded_state_dict(), folder))
    return all(torch.equal(p, wanted[name]) for name, p in built.named_parameters())


def main(folder: Path) -> None:
    parallel = Parallel(tp=2)
    backend.init_distributed(parallel, seed=1)
    told = {}
    for name in TOWERS:
        built = tower(name, parallel)
        alike = torch.tensor(loads_alike(built, folder / "one" / name), dtype=torch.int)
        torch.distributed.all_reduce(alike, torch.distributed.ReduceOp.MIN)
        told[name] = {"alike": bool(alike), "values": built(tiles()).values.tolist()}
        save(built, folder / "two" / name)
    values = {case: features(case, parallel).tolist() for case in SPLITS}
    if torch.distributed.get_rank() == 0:
        (folder / "results.json").write_text(json.dumps({"towers": told, "features": values}))
    backend.shutdown()


if __name__ == "__main__":
    main(Path(sys.argv[1]))

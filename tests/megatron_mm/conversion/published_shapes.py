"""Names and shapes of the tensors in released checkpoints, written down without our maps or our modules.

Sizes are plain mappings with the keys of recipes.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

Shapes = dict[str, tuple[int, ...]]
Sizes = dict[str, Any]


def under(prefix: str, shapes: Shapes) -> Shapes:
    """All names behind a prefix."""
    return {prefix + name: shape for name, shape in shapes.items()}


def linear(name: str, inputs: int, outputs: int, bias: bool = True) -> Shapes:
    """An nn.Linear."""
    return {f"{name}.weight": (outputs, inputs)} | ({f"{name}.bias": (outputs,)} if bias else {})


def norm(*names: str, width: int) -> Shapes:
    """LayerNorms."""
    return {f"{name}.{kind}": (width,) for name in names for kind in ("weight", "bias")}


def clip(of: Sizes) -> Shapes:
    """transformers' CLIPVisionModel."""
    width, ffn, patch = of["hidden"], of["ffn"], of["patch_size"]
    layer = norm("layer_norm1", "layer_norm2", width=width)
    layer |= linear("mlp.fc1", width, ffn) | linear("mlp.fc2", ffn, width)
    for part in ("k", "v", "q", "out"):
        layer |= linear(f"self_attn.{part}_proj", width, width)
    shapes = {
        "embeddings.class_embedding": (width,),
        "embeddings.patch_embedding.weight": (width, 3, patch, patch),
        "embeddings.position_embedding.weight": ((of["image_size"] // patch) ** 2 + 1, width),
    } | norm("pre_layrnorm", "post_layernorm", width=width)
    for n in range(of["layers"]):
        shapes |= under(f"encoder.layers.{n}.", layer)
    return under("vision_model.", shapes)


def convnext(of: Sizes) -> Shapes:
    """NVEagle's ConvNeXt: timm's, but for `weight` in place of `gamma`."""
    dims = of["dims"]
    shapes = {"stem.0.weight": (dims[0], 3, 4, 4), "stem.0.bias": (dims[0],)} | norm("stem.1", width=dims[0])
    for stage, (before, width) in enumerate(pairwise(dims), start=1):
        shapes |= norm(f"stages.{stage}.downsample.0", width=before)
        shapes |= {f"stages.{stage}.downsample.1.weight": (width, before, 2, 2)}
        shapes |= {f"stages.{stage}.downsample.1.bias": (width,)}
    for stage, (depth, width) in enumerate(zip(of["depths"], dims, strict=True)):
        block = {"weight": (width,), "conv_dw.weight": (width, 1, 7, 7), "conv_dw.bias": (width,)}
        block |= norm("norm", width=width) | linear("mlp.fc1", width, 4 * width) | linear("mlp.fc2", 4 * width, width)
        for n in range(depth):
            shapes |= under(f"stages.{stage}.blocks.{n}.", block)
    return shapes | norm("head.norm", width=dims[-1]) | linear("head.fc", dims[-1], 1024)


def sam(of: Sizes) -> Shapes:
    """transformers' SamVisionEncoder with Eagle's short neck."""
    width, ffn, side, out = of["hidden"], of["ffn"], of["image_size"] // of["patch_size"], of["neck_channels"]
    shapes = {
        "pos_embed": (1, side, side, width),
        "patch_embed.projection.weight": (width, 3, of["patch_size"], of["patch_size"]),
        "patch_embed.projection.bias": (width,),
        "neck.conv1.weight": (out, width, 1, 1),
    } | norm("neck.layer_norm1", width=out)
    for n in range(of["layers"]):
        reach = 2 * (side if n in of["global_layers"] else of["window"]) - 1
        layer = {f"attn.rel_pos_{axis}": (reach, width // of["heads"]) for axis in "hw"}
        layer |= linear("attn.qkv", width, 3 * width) | linear("attn.proj", width, width)
        layer |= linear("mlp.lin1", width, ffn) | linear("mlp.lin2", ffn, width)
        shapes |= under(f"layers.{n}.", layer | norm("layer_norm1", "layer_norm2", width=width))
    return shapes


def eva02(of: Sizes, rotary: bool = True) -> Shapes:
    """EVA-02's detection backbone, with the tables of rotary positions or without."""
    width, ffn, patch = of["hidden"], of["ffn"], of["patch_size"]
    head, window, side = width // of["heads"], of["window"], of["image_size"] // patch
    shapes: Shapes = {
        "pos_embed": (1, (of["trained_size"] // patch) ** 2 + 1, width),
        "patch_embed.proj.weight": (width, 3, patch, patch),
        "patch_embed.proj.bias": (width,),
    }
    tables = {"rope_win": window, "rope_glb": side}
    for n in range(of["layers"]):
        block = norm("norm1", "norm2", width=width) | norm("mlp.ffn_ln", width=ffn)
        for part in ("q", "k", "v"):
            block |= linear(f"attn.{part}_proj", width, width, bias=False)
        block |= {"attn.q_bias": (width,), "attn.v_bias": (width,)} | linear("attn.proj", width, width)
        block |= linear("mlp.w1", width, ffn) | linear("mlp.w2", width, ffn) | linear("mlp.w3", ffn, width)
        shapes |= under(f"blocks.{n}.", block)
        tables[f"blocks.{n}.attn.rope"] = side if n % 3 == 2 else window
    if rotary:
        shapes |= {f"{name}.freqs_{kind}": (s * s, head) for name, s in tables.items() for kind in ("cos", "sin")}
    return shapes


def pix2struct(of: Sizes) -> Shapes:
    """transformers' Pix2StructVisionModel."""
    width, ffn = of["hidden"], of["ffn"]
    layer = {"pre_attention_layer_norm.weight": (width,), "pre_mlp_layer_norm.weight": (width,)}
    for part in ("query", "key", "value", "output"):
        layer |= linear(f"attention.{part}", width, width, bias=False)
    for part, shape in {"wi_0": (width, ffn), "wi_1": (width, ffn), "wo": (ffn, width)}.items():
        layer |= linear(f"mlp.{part}", *shape, bias=False)
    shapes = linear("embeddings.patch_projection", 3 * of["patch_size"] ** 2, width)
    shapes |= {f"embeddings.{axis}_embedder.weight": (of["positions"], width) for axis in ("row", "column")}
    for n in range(of["layers"]):
        shapes |= under(f"encoder.layer.{n}.", layer)
    return shapes | {"layernorm.weight": (width,)}


def llama(of: Sizes) -> Shapes:
    """transformers' LlamaForCausalLM."""
    width, ffn, keys = of["hidden"], of["ffn"], of["hidden"] // of["heads"] * of["kv_heads"]
    layer = {"input_layernorm.weight": (width,), "post_attention_layernorm.weight": (width,)}
    for part, rows in {"q": width, "k": keys, "v": keys, "o": width}.items():
        layer |= linear(f"self_attn.{part}_proj", width, rows, bias=False)
    for part, shape in {"gate": (width, ffn), "up": (width, ffn), "down": (ffn, width)}.items():
        layer |= linear(f"mlp.{part}_proj", *shape, bias=False)
    shapes = {"model.embed_tokens.weight": (of["vocab"], width), "model.norm.weight": (width,)}
    for n in range(of["layers"]):
        shapes |= under(f"model.layers.{n}.", layer)
    return shapes | {"lm_head.weight": (of["vocab"], width)}


TOWERS = {"clip": clip, "convnext": convnext, "sam": sam, "eva02": eva02, "pix2struct": pix2struct}


def eagle(experts: list[Sizes], decoder: Sizes, channels: int) -> Shapes:
    """NVEagle's EagleLlamaForCausalLM with these towers."""
    width = decoder["hidden"]
    shapes = llama(decoder)
    shapes |= linear("model.mm_projector.0", channels, width) | linear("model.mm_projector.2", width, width)
    for n, expert in enumerate(experts):
        shapes |= under(f"model.vision_tower.vision_towers.{n}.vision_tower.", TOWERS[expert["name"]](expert))
    return shapes


def mmfuser(encoder: Sizes, decoder: Sizes) -> Shapes:
    """MMFuser's LlavaLlamaForCausalLM: 4 levels, 16 heads, 4 points."""
    channels, width = encoder["hidden"], decoder["hidden"]
    fuser: Shapes = {"gamma1": (channels,), "gamma2": (channels,)}
    fuser |= norm("query_norm", "feat_norm", "norm1", width=channels)
    for name, levels in {"cross_attn": 4, "self_attn": 1}.items():
        points = 16 * levels * 4
        attention = linear("sampling_offsets", channels, 2 * points) | linear("attention_weights", channels, points)
        attention |= linear("value_proj", channels, channels) | linear("output_proj", channels, channels)
        fuser |= under(f"{name}.", attention)
    projector = under("0.", fuser) | linear("1", channels, width) | linear("3", width, width)
    tower = under("model.vision_tower.vision_tower.", clip(encoder))
    return llama(decoder) | under("model.mm_projector.", projector) | tower


def eve(encoder: Sizes, decoder: Sizes, teacher: Sizes) -> Shapes:
    """EVE's EVELlamaForCausalLM as saved by its training: aligning layer, teacher twice, rotary buffers."""
    channels, width, layers, aligned = encoder["channels"], decoder["hidden"], decoder["layers"], teacher["hidden"]
    attention: Shapes = norm("q.0", "kv.0", width=channels) | linear("proj", channels, channels)
    attention |= {"q.1.weight": (channels, channels), "kv.1.weight": (2 * channels, channels)}
    tower: Shapes = dict.fromkeys(["class_embedding", "split_embedding"], (channels,))
    tower |= {"patch_embedding.weight": (channels, 3, encoder["patch_size"], encoder["patch_size"])}
    tower |= under("local_attention.", attention) | under("global_attention.", attention)
    compressor = linear("input_layer", width, aligned) | linear("output_layer", aligned, aligned)
    for n in range(layers // 4 + 1):
        compressor |= norm(f"norm_layer.{n}.0", width=width) | {f"norm_layer.{n}.1.weight": (aligned, width)}
    shapes = llama(decoder) | under("model.vision_tower.", tower) | under("model.vision_tower_compressor.", compressor)
    shapes |= linear("model.mm_projector.0", channels, width) | linear("model.mm_projector.2", width, width)
    for place in ("vision_clip", "vision_tower_compressor.clip_layer"):
        shapes |= under(f"model.{place}.backbone.", clip(teacher))
    rotary = (width // decoder["heads"] // 2,)
    return shapes | {f"model.layers.{n}.self_attn.rotary_emb.inv_freq": rotary for n in range(layers)}


def eve_v2(encoder: Sizes, decoder: Sizes) -> Shapes:
    """EVEv2's EVEQwen2ForCausalLM: every weight of a layer twice."""
    between, width, patch = encoder["hidden"], decoder["hidden"], encoder["patch_size"]
    keys = width // decoder["heads"] * decoder["kv_heads"]
    shapes = llama(decoder)
    for n in range(decoder["layers"]):
        biases = {f"{part}_proj.bias": (rows,) for part, rows in {"q": width, "k": keys, "v": keys}.items()}
        shapes |= under(f"model.layers.{n}.self_attn.", biases)
    for name, shape in list(shapes.items()):
        if name.startswith("model.layers."):
            place, part = name.split(".")[:3], name.split(".")[3:]
            part[-2 if part[0] == "self_attn" else 0] = f"moe_{part[-2 if part[0] == 'self_attn' else 0]}"
            shapes[".".join([*place, *part])] = shape
    tower: Shapes = dict.fromkeys(["class_embedding", "split_embedding"], (width,))
    tower |= {"patch_embedding.0.weight": (between, 3, patch, patch), "patch_embedding.0.bias": (between,)}
    tower |= {"patch_embedding.2.weight": (width, between, 2, 2), "patch_embedding.2.bias": (width,)}
    return shapes | under("model.vision_tower.", tower)

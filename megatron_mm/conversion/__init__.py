"""Published weights in and out, tensor by tensor.

A published layout is a `Format` (formats.py): its name, its architectures, and for each axis that it holds a
`WeightMap` (rules.py). A map is data, read both ways: `Rule(ours, theirs, how)`, where

    ours    a parameter of the axis by its name in one process, "{n}" for a number: "decoder.layers.{n}.norm.weight"
    theirs  the published tensor, or those that are joined into it, with as many "{n}"; "{any}" stands for several words
    how     a transform (transforms.py): `join(parts, shape, spec)` makes ours, `split(whole, spec)` makes theirs

`map.under("language_model.")` is the same map for tensors under a prefix, `map.inside("experts.clip.")` for parameters
under one. `a + b` has the rules of both, and the first that names a parameter holds. Which of ours there are is asked
of the model, built on the meta device (ours.py). A rule whose parameter the model lacks says nothing; a parameter that
no rule names is an error.

    class Mine(Format):
        name = "mine"
        architectures = ("MineForCausalLM",)                  # of config.json: how `import` knows the format
        maps = {"encoder": INTERNVIT.under("vision_model."), "decoder": QWEN2.under("language_model.")}
        def fits(self, model): ...                            # raises ConfigError where `model` is none of these
        def config(self, model): ...                          # config.json without its dtype
        def files(self, spec, dtype): ...                     # name -> bytes of all that stands beside the weights

Names that depend on the model are made by `of(model)`. An encoder's format is a `OneEncoder` (one_encoder.py), which
also fits an expert of a mixture. Published tensors that no feature depends on are `constants(model)`: an import leaves
them out with a reason, an export writes them with neutral values, so that the published class misses nothing.

A new format is one file and one line in the table below. `import` compares `config(model)` with the config.json it is
given, but for the keys in `loose`, and the names and shapes of every tensor, before it writes anything.
"""

from megavlm.platform.registry import Registry

FORMATS = Registry("weight format", {
    "qwen2": "megavlm.megatron_mm.conversion.qwen2:Qwen2",
    "llama": "megavlm.megatron_mm.conversion.llama:Llama",
    "clip": "megavlm.megatron_mm.conversion.clip:Clip",
    "siglip": "megavlm.megatron_mm.conversion.siglip:Siglip",
    "internvit": "megavlm.megatron_mm.conversion.internvit:InternViT",
    "convnext": "megavlm.megatron_mm.conversion.convnext:ConvNeXt",
    "sam": "megavlm.megatron_mm.conversion.sam:Sam",
    "eva02": "megavlm.megatron_mm.conversion.eva02:Eva02",
    "pix2struct": "megavlm.megatron_mm.conversion.pix2struct:Pix2Struct",
    "dinov2": "megavlm.megatron_mm.conversion.dinov2:Dinov2",
    "nvlm_d": "megavlm.megatron_mm.conversion.nvlm_d:NVLMD",
    "eve": "megavlm.megatron_mm.conversion.eve:Eve",
    "eve_v2": "megavlm.megatron_mm.conversion.eve_v2:EveV2",
    "eagle": "megavlm.megatron_mm.conversion.eagle:Eagle",
    "mmfuser": "megavlm.megatron_mm.conversion.mmfuser:MMFuser",
    "megavlm": "megavlm.megatron_mm.conversion.megavlm:MegaVLM",
})  # fmt: skip

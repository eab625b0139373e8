"""Encoders: tiles -> feature maps. A new encoder is one file here and one line in this table."""

from megavlm.platform.registry import Registry

ENCODERS = Registry("encoder", {
    "internvit": "megavlm.megatron_mm.encoders.internvit:InternViT",
    "clip": "megavlm.megatron_mm.encoders.clip:Clip",
    "siglip": "megavlm.megatron_mm.encoders.siglip:Siglip",
    "convnext": "megavlm.megatron_mm.encoders.convnext:ConvNeXt",
    "sam": "megavlm.megatron_mm.encoders.sam:Sam",
    "mixture": "megavlm.megatron_mm.encoders.mixture:Mixture",
})  # fmt: skip

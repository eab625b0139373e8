"""Encoders: tiles -> feature maps. A new encoder is one file here and one line in this table."""

from megavlm.platform.registry import Registry

ENCODERS = Registry("encoder", {
    "internvit": "megavlm.megatron_mm.encoders.internvit:InternViT",
    "clip": "megavlm.megatron_mm.encoders.clip:Clip",
    "siglip": "megavlm.megatron_mm.encoders.siglip:Siglip",
    "convnext": "megavlm.megatron_mm.encoders.convnext:ConvNeXt",
    "sam": "megavlm.megatron_mm.encoders.sam:Sam",
    "eva02": "megavlm.megatron_mm.encoders.eva02:Eva02",
    "pix2struct": "megavlm.megatron_mm.encoders.pix2struct:Pix2Struct",
    "mixture": "megavlm.megatron_mm.encoders.mixture:Mixture",
    "llava_hr": "megavlm.megatron_mm.encoders.llava_hr:LlavaHr",
    "dinov2": "megavlm.megatron_mm.encoders.dinov2:Dinov2",
    "eve": "megavlm.megatron_mm.encoders.eve:Eve",
    "eve_v2": "megavlm.megatron_mm.encoders.eve_v2:EveV2",
})  # fmt: skip

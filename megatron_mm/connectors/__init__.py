"""Connectors: feature maps -> tokens of the decoder's width. A new one is one file here and one line in this table."""

from megavlm.platform.registry import Registry

CONNECTORS = Registry("connector", {
    "pixel_shuffle_mlp": "megavlm.megatron_mm.connectors.pixel_shuffle_mlp:PixelShuffleMLP",
})  # fmt: skip

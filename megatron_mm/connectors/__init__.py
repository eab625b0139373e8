"""Connectors: feature maps -> tokens of the decoder's width. A new one is one file here and one line in this table."""

from megavlm.platform.registry import Registry

CONNECTORS = Registry("connector", {
    "pixel_shuffle_mlp": "megavlm.megatron_mm.connectors.pixel_shuffle_mlp:PixelShuffleMLP",
    "mlp": "megavlm.megatron_mm.connectors.mlp:MLP",
    "channel_concat": "megavlm.megatron_mm.connectors.channel_concat:ChannelConcat",
    "sequence_append": "megavlm.megatron_mm.connectors.sequence_append:SequenceAppend",
    "windows": "megavlm.megatron_mm.connectors.windows:Windows",
    "multi_layer": "megavlm.megatron_mm.connectors.multi_layer:MultiLayer",
    "mmfuser": "megavlm.megatron_mm.connectors.mmfuser:MMFuser",
    "deformable": "megavlm.megatron_mm.connectors.deformable:DeformableConnector",
    "image_rows": "megavlm.megatron_mm.connectors.image_rows:ImageRows",
})  # fmt: skip

"""Image embedders. A new one is one file here and one line in this table."""

from megavlm.platform.registry import Registry

EMBEDDERS = Registry("embedder", {
    "open_clip": "megavlm.data_curation.embedders.open_clip_model:OpenClip",
    "pixels": "megavlm.data_curation.embedders.pixels:Pixels",
    "timm": "megavlm.data_curation.embedders.timm_model:Timm",
})  # fmt: skip

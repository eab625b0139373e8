"""Where raw pairs come from. A new source is one file here and one line in this table; a recipe then names it."""

from megavlm.platform.registry import Registry

SOURCES = Registry("source", {
    "img2dataset": "megavlm.data_curation.sources.img2dataset:Img2Dataset",
    "tars": "megavlm.data_curation.sources.tars:Tars",
    "folder": "megavlm.data_curation.sources.folder:Folder",
    "hf": "megavlm.data_curation.sources.hugging_face:HuggingFace",
    "llava_json": "megavlm.data_curation.sources.llava_json:LlavaJson",
    "laion_metadata": "megavlm.data_curation.sources.laion_metadata:LaionMetadata",
    "text": "megavlm.data_curation.text.source:TextSets",
})  # fmt: skip

"""Rules of the filter stage. A new rule is one class and one line in this table; `extra` then names it."""

from megavlm.platform.registry import Registry

FILTERS = Registry("filter", {
    "sides": "megavlm.data_curation.filters.pictures:Sides",
    "aspect": "megavlm.data_curation.filters.pictures:Aspect",
    "contrast": "megavlm.data_curation.filters.pictures:Contrast",
    "punsafe": "megavlm.data_curation.filters.scores:Unsafe",
    "watermark": "megavlm.data_curation.filters.scores:Watermark",
    "aesthetic": "megavlm.data_curation.filters.scores:Aesthetic",
    "similarity": "megavlm.data_curation.filters.scores:Similarity",
    "language": "megavlm.data_curation.filters.captions:Language",
    "caption_length": "megavlm.data_curation.filters.captions:CaptionLength",
    "caption_pattern": "megavlm.data_curation.filters.captions:CaptionPattern",
})  # fmt: skip

"""`megavlm data convert`: other formats -> shards. A new one is one file here and one line in this table.

A conversion is a function Job -> the samples of its source in order (`job.py`).
"""

from megavlm.platform.registry import Registry

CONVERSIONS = Registry("conversion", {
    "llava": "megavlm.data_curation.convert.chats:samples",
    "sharegpt": "megavlm.data_curation.convert.chats:samples",
    "alpaca": "megavlm.data_curation.convert.alpaca:samples",
    "messages": "megavlm.data_curation.convert.messages:samples",
    "captions": "megavlm.data_curation.convert.captions:samples",
    "hf": "megavlm.data_curation.convert.hugging_face:samples",
})  # fmt: skip

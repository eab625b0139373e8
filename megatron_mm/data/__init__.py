"""From shards to packed sequences: tokenizer, conversations, the pack manifest, the loader."""

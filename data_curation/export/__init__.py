"""What both exports hand over beside their shards: provenance, statistics and the manifest."""

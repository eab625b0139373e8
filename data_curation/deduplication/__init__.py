"""Deduplication of a whole run: images by cluster, what each method finds, and the sidecars."""

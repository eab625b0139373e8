"""Crawls with planted copies, and what their curation is judged by: for the campaigns and for tests."""

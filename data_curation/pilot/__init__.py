"""The pilot of a curation: a small part of the source, curated for real and measured, and what the whole would take."""

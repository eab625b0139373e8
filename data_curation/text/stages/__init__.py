"""The stages of text, registered with the others in `data_curation.stages`."""

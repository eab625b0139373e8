"""The curation's part of a run's report: one file per section, over what the run's files hold."""

from .sections import add_sections

__all__ = ["add_sections"]

"""The run folder: the one contract between whoever starts a run, the run itself, and whoever asks about it."""

from .folder import Attempt, RunFolder, all_runs, default_runs_root, find_run
from .signals import SaveRequest

__all__ = ["Attempt", "RunFolder", "SaveRequest", "all_runs", "default_runs_root", "find_run"]

"""Which predictions a word means: a stage of this run, RUN:STAGE, or a folder of them. Loads no torch."""

from __future__ import annotations

from pathlib import Path

from megavlm.platform.errors import InputError
from megavlm.platform.runs import RunFolder, find_run

from .predictions import EVALUATE

PREDICTIONS = "predictions"
SUFFIX = ".jsonl"


def predictions_folder(word: str, run: RunFolder | None = None) -> Path:
    """The folder with SUITE.jsonl that `word` means: a stage of `run`, RUN:STAGE (RUN a name or a folder), or a path.

    Raises InputError, saying what is there instead.
    """
    if run is not None and (folder := _of_stage(run, word)) is not None:
        return folder
    name, colon, stage = word.rpartition(":")
    if colon and name and not Path(word).is_dir():
        other = find_run(name)
        folder = _of_stage(other, stage)
        if folder is None:
            raise _nothing(f"run '{other.name}' has no predictions of stage '{stage}'", other)
        return folder
    if suites_in(Path(word)):
        return Path(word)
    if run is not None and not Path(word).is_dir():
        raise _nothing(
            f"no predictions '{word}': neither a stage of run '{run.name}', nor RUN:STAGE, nor a folder", run
        )
    raise InputError(f"no predictions in '{word}'", where=str(Path(word)), fix=_instead(Path(word)))


def suites_in(folder: Path) -> dict[str, Path]:
    """Suite -> its file of predictions in a folder, by name; {} where there is none. Not those of other ways to ask."""
    return {path.stem: path for path in sorted(folder.glob(f"*{SUFFIX}")) if "." not in path.stem}


def _of_stage(run: RunFolder, stage: str) -> Path | None:
    root = run.path(PREDICTIONS)
    # a name and not a path: what leads elsewhere is looked for as a folder, and no stage
    names = {path.name: path for path in root.iterdir()} if root.is_dir() else {}
    return names[stage] if stage in names and suites_in(names[stage]) else None


def _nothing(what: str, run: RunFolder) -> InputError:
    return InputError(what, where=str(run.path(PREDICTIONS)), fix=_instead(run.root))


def _instead(folder: Path) -> str:
    """What to name in place of a folder without predictions."""
    root = folder / PREDICTIONS
    if root.is_dir():
        stages = sorted(path.name for path in root.iterdir() if suites_in(path))
        return f"it has predictions of: {', '.join(stages)}; name one as {folder}:STAGE" if stages else EVALUATE
    inside = sorted(path.name for path in folder.iterdir() if suites_in(path)) if folder.is_dir() else []
    if inside:
        return f"there are predictions in its folders {', '.join(inside)}"
    return "give RUN:STAGE, or a folder that holds SUITE.jsonl; " + EVALUATE

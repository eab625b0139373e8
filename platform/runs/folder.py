"""The run folder itself: made once, opened by everyone, enough to relaunch a run or to file a bug."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from ..config.tree import leaves, parse_yaml
from ..errors import ConfigError, InputError, did_you_mean
from .attempt import VARIABLE, Attempt
from .lines import append_line, read_lines, write_whole
from .provenance import provenance
from .resolved import to_yaml


def default_runs_root() -> Path:
    """$MEGAVLM_RUNS, or ./runs."""
    return Path(os.environ.get("MEGAVLM_RUNS") or "runs")


def find_run(name_or_path: str) -> RunFolder:
    """Open a run given by its folder or by its name under default_runs_root(); raises InputError."""
    for path in (Path(name_or_path), default_runs_root() / name_or_path):
        if _is_run(path):
            return RunFolder(path)
    known = [run.name for run in all_runs()]
    fix = did_you_mean(name_or_path, known) if known else "give the folder that holds config.yaml"
    raise InputError(f"no run '{name_or_path}'", where=str(default_runs_root()), fix=fix)


def all_runs() -> list[RunFolder]:
    """Every run directly under default_runs_root(), by name."""
    root = default_runs_root()
    return [RunFolder(path) for path in sorted(root.iterdir()) if _is_run(path)] if root.is_dir() else []


def _is_run(path: Path) -> bool:
    """Whether `path` holds a run: one that began, or one that was only submitted (jobs.jsonl) and has to wait."""
    # os.path: unlike pathlib's, its questions say no where a folder is closed to us, as others' may be in a shared root
    return any(os.path.isfile(path / name) for name in ("config.yaml", "jobs.jsonl"))


class RunFolder:
    """config.yaml, provenance.json, attempts/NN, metrics.jsonl, checkpoints/, saved, finished, report.html."""

    def __init__(self, root: Path | str) -> None:
        self.root = Path(root)

    @classmethod
    def create(
        cls,
        path: Path | str,
        config: dict[str, Any],
        origins: Mapping[str, str],
        command: Sequence[str],
        may_change: Sequence[str] = (),
    ) -> RunFolder:
        """Make the folder, or take up the one that is there when it has the same `config`.

        `config` and `origins` are a Recipe's tree and origins, `command` the command line as typed. `may_change` lists
        patterns of dotted keys (fnmatch, such as "stages.*.parallel.*") that a resume may set anew.
        Raises ConfigError when any other key differs: another configuration is another run.
        """
        run = cls(path)
        changed = run._differences(config) if run.path("config.yaml").exists() else []
        fixed = [key for key in changed if not any(fnmatchcase(key, pattern) for pattern in may_change)]
        if fixed:
            raise ConfigError(
                f"{run.root} holds a run with another '{fixed[0]}'",
                where=fixed[0],
                fix="give another folder, or the configuration this run was started with",
            )
        run._write(config, origins, command, anew=bool(changed))
        return run

    @classmethod
    def open(cls, path: Path | str) -> RunFolder:
        """An existing run folder; raises InputError when there is none."""
        if not (Path(path) / "config.yaml").is_file():
            raise InputError(f"no run folder '{path}'", where=str(path), fix="give the folder that holds config.yaml")
        return cls(path)

    def path(self, *parts: str) -> Path:
        """A path inside the folder; raises InputError when it would leave it."""
        inside = self.root.joinpath(*parts)
        if not inside.resolve().is_relative_to(self.root.resolve()):
            raise InputError(f"'{'/'.join(parts)}' leaves the run folder", where=str(self.root))
        return inside

    @property
    def name(self) -> str:
        """The folder's own name."""
        return self.root.resolve().name

    def config(self) -> dict[str, Any]:
        """The resolved configuration the run was made with."""
        path = self.path("config.yaml")
        return parse_yaml(path.read_text(), where=str(path))

    def new_attempt(self) -> Attempt:
        """The next attempts/NN, made atomically, or the one of this run that the environment names (VARIABLE).

        A `saved` of an earlier attempt goes: it answers no new request.
        """
        self.path("saved").unlink(missing_ok=True)
        return self._given_attempt() or self._make_attempt()

    def current_attempt(self) -> Attempt:
        """The attempt this process belongs to: the one the environment names, or the last; raises InputError."""
        attempt = self._given_attempt() or next(reversed(self.attempts()), None)
        if attempt is None:
            raise InputError(f"run '{self.name}' has no attempt", where=str(self.root))
        return attempt

    def _given_attempt(self) -> Attempt | None:
        given = os.environ.get(VARIABLE)
        inside = given and Path(given).resolve().parent == self.root.resolve() / "attempts"
        return Attempt(Path(given)) if given and inside else None

    def _make_attempt(self) -> Attempt:
        number = max((attempt.number for attempt in self.attempts()), default=0) + 1
        while True:
            folder = self.path("attempts", f"{number:02d}")
            try:
                folder.mkdir(parents=True)
                return Attempt(folder)
            except FileExistsError:
                number += 1

    def attempts(self) -> list[Attempt]:
        """Every attempt so far, in order; worker processes take the last one."""
        folders = self.path("attempts").glob("[0-9]*")
        return sorted((Attempt(folder) for folder in folders), key=lambda attempt: attempt.number)

    def append_metrics(self, fields: dict[str, Any]) -> None:
        """Append one line to metrics.jsonl; numbers must be finite (ValueError)."""
        append_line(self.path("metrics.jsonl"), fields)

    def metrics(self, unique: Sequence[str] = ()) -> list[dict[str, Any]]:
        """Every whole line of metrics.jsonl, oldest first.

        With `unique`, such as ("stage", "step"), a later line replaces an earlier one that agrees in these fields:
        a resumed run repeats the steps since its last checkpoint.
        """
        lines = read_lines(self.path("metrics.jsonl"))
        if not unique:
            return lines
        return list({tuple(line.get(field) for field in unique): line for line in lines}.values())

    def mark_saved(self, step: int) -> None:
        """Answer a save request: everything up to `step` is safe on disk."""
        write_whole(self.path("saved"), json.dumps({"step": step, "time": round(time.time(), 3)}))

    @property
    def saved(self) -> int | None:
        """The step that the last attempt saved on request, if it did."""
        path = self.path("saved")
        return int(json.loads(path.read_text())["step"]) if path.exists() else None

    def mark_finished(self) -> None:
        """The run is complete; nothing is left to resume."""
        write_whole(self.path("finished"), json.dumps({"time": round(time.time(), 3)}))

    @property
    def finished(self) -> bool:
        """Whether the run is complete."""
        return self.path("finished").exists()

    def _differences(self, config: dict[str, Any]) -> list[str]:
        old, new = dict(leaves(self.config())), dict(leaves(json.loads(json.dumps(config))))
        return sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))

    def _write(self, config: dict[str, Any], origins: Mapping[str, str], command: Sequence[str], anew: bool) -> None:
        """config.yaml comes last: where it is, the folder is whole."""
        self.root.mkdir(parents=True, exist_ok=True)
        if not self.path("provenance.json").exists():
            write_whole(self.path("provenance.json"), json.dumps(provenance(command, origins), indent=2))
        if anew or not self.path("config.yaml").exists():
            write_whole(self.path("config.yaml"), to_yaml(config, origins))

"""What a person points at: a run's export, or an export folder that was copied elsewhere."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from megavlm.platform.errors import InputError
from megavlm.platform.runs import find_run

from ..run import CurationRun
from .layout import MANIFEST, REMOVED
from .manifest import Json, read_manifest


@dataclasses.dataclass(frozen=True)
class Place:
    """`run` is None for an export that stands alone."""

    export: Path
    run: CurationRun | None

    @classmethod
    def find(cls, given: str) -> Place:
        """A run (folder or name), its export folder, or a copy of one; raises InputError for anything else."""
        path = Path(given)
        if path.name == "export" and (path.parent / "config.yaml").is_file():
            return cls(path, CurationRun.open(path.parent))
        if (path / MANIFEST).is_file() and not (path / "config.yaml").is_file():
            return cls(path, None)
        if path.is_dir() and not (path / "config.yaml").is_file():
            fix = f"give a run, or a folder with the {MANIFEST} that `megavlm curate run` writes"
            raise InputError(f"'{given}' is neither a run nor an export", where=given, fix=fix)
        run = CurationRun.open(find_run(given).root)
        return cls(run.folder.path("export"), run)

    def manifest(self) -> Json | None:
        """None while the export is not complete."""
        return read_manifest(self.export)

    @property
    def removed(self) -> Path:
        """The list of what was taken down: the run's, which decides what a later run exports, or the export's own."""
        return self.run.folder.path(REMOVED) if self.run else self.export / REMOVED

"""The running code, copied into the run: a job that waited for a week runs what was submitted, and nothing newer."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import os
import shutil
import tempfile
from pathlib import Path

import megavlm
from megavlm.platform.runs import RunFolder

PACKAGE = "megavlm"
# With an __init__.py the copy is all of the package. Without one Python would join it with every other megavlm that it
# finds, the installed one above all, and a module missing here would silently come from there.
CLOSED = '"""A copy of the package, made by `megavlm submit`."""\n'
LEFT_OUT = {"__pycache__"}


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """The package's files, name (below the folder that PYTHONPATH names) -> content, links resolved."""

    files: dict[str, bytes]

    @classmethod
    def of_running(cls) -> Snapshot:
        """What this process runs, wherever it was installed or linked to."""
        rooms = [room for portion in megavlm.__path__ for room in sorted(Path(portion).iterdir()) if room.is_dir()]
        files = {f"{PACKAGE}/__init__.py": CLOSED.encode()}
        for room in rooms:
            for path in _files(room.resolve()):
                with contextlib.suppress(FileNotFoundError):  # an editor's own, gone by now
                    files.setdefault(f"{PACKAGE}/{room.name}/{path.relative_to(room.resolve())}", path.read_bytes())
        return cls(files)

    @functools.cached_property
    def hash(self) -> str:
        """Of all names and contents: 16 hexadecimal digits of a SHA-256."""
        digest = hashlib.sha256()
        for name in sorted(self.files):
            digest.update(f"{name}\0{len(self.files[name])}\0".encode() + self.files[name])
        return digest.hexdigest()[:16]

    def folder(self, run: RunFolder) -> Path:
        """RUN/code/HASH, what PYTHONPATH has to name; it need not be there."""
        return run.path("code", self.hash).absolute()

    def write(self, run: RunFolder) -> Path:
        """The folder, written beside and renamed unless it is there: then it holds the same."""
        folder = self.folder(run)
        if folder.is_dir():
            return folder
        folder.parent.mkdir(parents=True, exist_ok=True)
        beside = Path(tempfile.mkdtemp(prefix=f".{self.hash}.", dir=folder.parent))
        try:
            self._fill(beside)
            beside.chmod(0o755)  # mkdtemp's own mode lets nobody else in, an admin who looks why a job failed neither
            os.rename(beside, folder)
        except OSError:
            shutil.rmtree(beside, ignore_errors=True)
            if not folder.is_dir():  # else another submission was quicker
                raise
        return folder

    def _fill(self, folder: Path) -> None:
        for name, content in self.files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)


def _files(room: Path) -> list[Path]:
    """Every file of a room, without what Python compiled and what is hidden."""
    inside = (path for path in room.rglob("*") if path.is_file())
    return sorted(path for path in inside if not any(_hidden(part) for part in path.relative_to(room).parts))


def _hidden(part: str) -> bool:
    return part in LEFT_OUT or part.startswith(".")

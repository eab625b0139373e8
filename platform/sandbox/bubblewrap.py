"""The command line of a sandbox: bubblewrap (https://github.com/containers/bubblewrap), then prlimit, then Python."""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from .gate import PORTER, PROGRAM_AT
from .limits import Limits

NOBODY = "65534"
PYTHON_AT = "/python"  # the interpreter's own place may lie in somebody's home: its path stays outside
SIZED_TMPFS = (0, 7)  # the first bwrap with --size


@functools.cache
def version(bwrap: str) -> tuple[int, ...]:
    """Its version as numbers; () when it does not tell."""
    try:
        done = subprocess.run([bwrap, "--version"], capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return ()
    return tuple(int(part) for part in re.findall(r"\d+", done.stdout))


def command(
    arguments: Sequence[str], limits: Limits, *, program: int, gate: tuple[int, int], seccomp: int | None
) -> list[str]:
    """The words to start. Raises FileNotFoundError.

    File descriptors: `program` of its text, `gate` as Gate.inside, `seccomp` of the filter.
    """
    bwrap, prlimit = _tool("bwrap"), _tool("prlimit")
    sized = version(bwrap) >= SIZED_TMPFS
    mounts, python = _interpreter()
    return [
        *(bwrap, "--unshare-all", "--unshare-user", "--uid", NOBODY, "--gid", NOBODY, "--hostname", "sandbox"),
        *("--cap-drop", "ALL", "--clearenv", "--new-session", "--die-with-parent", "--as-pid-1"),
        *_system(),
        *mounts,
        *("--dev-bind", "/dev/null", "/dev/null", "--dev-bind", "/dev/urandom", "/dev/urandom"),
        # No /proc: Python needs none, and containers often may not mount one.
        *("--ro-bind-data", str(program), PROGRAM_AT),
        *(("--size", str(limits.work), "--tmpfs", "/work") if limits.work and sized else ("--dir", "/work")),
        # The root is a tmpfs too, without a size: closed once everything is in place.
        *("--remount-ro", "/", "--chdir", "/work"),
        *(("--seccomp", str(seccomp)) if seccomp is not None else ()),
        *("--setenv", "LD_LIBRARY_PATH", f"{PYTHON_AT}/lib", "--setenv", "OMP_NUM_THREADS", "1"),
        *("--", prlimit, *limits.prlimit(), python, "-I", "-S", "-B", "-X", "utf8"),
        *("-c", PORTER, *map(str, gate), *arguments),
    ]


def _tool(name: str) -> str:
    if path := shutil.which(name):
        return os.path.realpath(path)
    raise FileNotFoundError(f"{name} is not on PATH")


def _system() -> list[str]:
    """/usr read-only, and /bin, /lib* as they are here: links into /usr, or folders of their own."""
    out = ["--ro-bind", "/usr", "/usr"]
    for path in (Path("/bin"), *sorted(Path("/").glob("lib*"))):
        out += ["--symlink", os.readlink(path), str(path)] if path.is_symlink() else ["--ro-bind", str(path), str(path)]
    return out


def _interpreter() -> tuple[list[str], str]:
    """Mounts and path of this interpreter without its virtual environment: its binary and its `lib`, nothing beside."""
    binary = Path(sys.executable).resolve()
    base = Path(sys.base_prefix).resolve()
    if base == Path("/usr"):
        return [], str(binary)
    python = f"{PYTHON_AT}/bin/{binary.name}"
    return ["--ro-bind", str(binary), python, "--ro-bind", str(base / "lib"), f"{PYTHON_AT}/lib"], python

"""What one node tells of itself, in a second or two and without torch: disks, memory, versions."""

from __future__ import annotations

import mmap
import os
import platform
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

MEMORY_DISK = Path("/dev/shm")
DISK_BYTES, MEMORY_DISK_BYTES = 16 << 20, 32 << 20
TIMES = 3  # the best of so many counts: writes of others beside ours are no fault of the node
PACKAGES = ("megavlm", "torch", "megatron-core", "transformer-engine")


def write_rate(folder: Path, size: int, times: int = TIMES) -> float:
    """Bytes per second of writing `size` bytes into a file there and syncing it, the best of `times`.

    Raises OSError when the folder cannot be written.
    """
    with mmap.mmap(-1, size) as data, tempfile.NamedTemporaryFile(dir=folder, prefix=".preflight-") as file:
        data.write(os.urandom(1 << 16) * (size >> 16))  # random: file systems that compress must not look fast
        return size / min(_seconds(lambda: _write(file.fileno(), data)) for _ in range(times))


def disk(folder: Path) -> float:
    """Bytes per second into the run's file system."""
    return write_rate(folder, DISK_BYTES)


def memory_disk() -> float:
    """Bytes per second into /dev/shm; what loaders and NCCL pass between processes lies there."""
    return write_rate(MEMORY_DISK, MEMORY_DISK_BYTES)


def free(folder: Path) -> dict[str, float]:
    """Free bytes of memory, of /dev/shm and of the run's file system."""
    found = {"disk_free": folder, "memory_disk_free": MEMORY_DISK}
    disks = {name: _free_bytes(path) for name, path in found.items() if path.is_dir()}
    return {"memory_free": _available(), **disks}


def versions() -> dict[str, str | None]:
    """Of what has to be the same on all nodes; read from metadata, nothing is imported."""
    packages = {name: _version(name) for name in PACKAGES}
    return {"python": platform.python_version(), "kernel": platform.release(), "code": code_hash(), **packages}


def code_hash(file: Path = Path(__file__)) -> str | None:
    """The snapshot this runs from, RUN/code/HASH/megavlm/slurm/preflight/...; None when it runs from elsewhere."""
    *_, code, name, _megavlm, _slurm, _preflight = file.absolute().parent.parts
    return name if code == "code" else None


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _free_bytes(path: Path) -> float:
    told = os.statvfs(path)
    return float(told.f_bavail * told.f_frsize)


def _available() -> float:
    """What programs can still have, page cache included: MemAvailable of /proc/meminfo."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return float(next(line.split()[1] for line in lines if line.startswith("MemAvailable:"))) * 1024


def _write(handle: int, data: mmap.mmap) -> None:
    view, done = memoryview(data), 0
    try:
        while done < len(view):
            done += os.pwrite(handle, view[done:], done)
        os.fsync(handle)
    finally:
        view.release()


def _seconds(work: Callable[[], None]) -> float:
    start = time.perf_counter()
    work()
    return max(time.perf_counter() - start, 1e-9)

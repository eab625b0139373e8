"""What a program in the sandbox may use."""

from __future__ import annotations

import dataclasses
import math

MIB = 1 << 20


@dataclasses.dataclass(frozen=True)
class Limits:
    """All sizes in bytes. The kernel holds them (setrlimit(2)), but for `seconds` and `output`, which we hold.

    seconds: wall clock from the program's start; then all in the sandbox is killed. CPU seconds are limited alike.
    memory: address space of the one process.
    work: size of /work, the only writable folder, a tmpfs; 0 for none.
    output: what is kept of stdout, and as much of stderr; the rest is read and thrown away.
    files: open files.
    """

    seconds: float = 10.0
    memory: int = 1024 * MIB
    work: int = 16 * MIB
    output: int = 64 << 10
    files: int = 64

    def __post_init__(self) -> None:
        numbers = dataclasses.asdict(self)
        if bad := [name for name, value in numbers.items() if value < 0 or not math.isfinite(value)]:
            raise ValueError(f"limits must be finite and not negative: {', '.join(bad)}")

    def prlimit(self) -> list[str]:
        """Options of prlimit(1). No process may start; the seccomp filter says so too, since root's are not counted."""
        kept = {
            "cpu": max(1, math.ceil(self.seconds)),
            "as": self.memory,
            "fsize": self.work,
            "nofile": self.files,
            "nproc": 0,
            "core": 0,
            "memlock": 0,
        }
        return [f"--{name}={value}:{value}" for name, value in kept.items()]

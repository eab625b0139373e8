"""The work: a chain of hashes over sample ids, and its state on disk."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from pathlib import Path

SAMPLES = 8  # per step, over all nodes


@dataclasses.dataclass(frozen=True)
class Chain:
    """After `step` steps. Two chains agree in `digest` only when they saw the same samples in the same order."""

    step: int = 0
    digest: str = ""

    def after(self, samples: list[int]) -> Chain:
        """One step further."""
        text = json.dumps([self.digest, sorted(samples)])
        return Chain(self.step + 1, hashlib.sha256(text.encode()).hexdigest())

    @property
    def loss(self) -> float:
        """The digest as a number in [0, 1) that JSON keeps to the bit."""
        return int(self.digest[:12], 16) / 2**48


def share(step: int, rank: int, nodes: int) -> list[int]:
    """The sample ids of one node in the step that follows `step`."""
    return list(range(step * SAMPLES + rank, (step + 1) * SAMPLES, nodes))


def load(folder: Path) -> Chain:
    """The saved state, or the beginning."""
    path = folder / "state.json"
    return Chain(**json.loads(path.read_text())["chain"]) if path.exists() else Chain()


def save(folder: Path, chain: Chain, size: int) -> None:
    """Replace the saved state by one of about `size` bytes; when that fails (OSError) the old one is still there."""
    folder.mkdir(parents=True, exist_ok=True)
    beside = folder / "state.json.new"
    try:
        with beside.open("w") as out:
            json.dump({"chain": dataclasses.asdict(chain), "weights": "w" * size}, out)
            out.flush()
            os.fsync(out.fileno())
        beside.replace(folder / "state.json")
    except OSError:
        beside.unlink(missing_ok=True)
        raise

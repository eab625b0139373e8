"""`python -m megavlm.slurm.stacks ATTEMPT`: where every rank on this machine stands, for an attempt that hangs.

Writes attempts/NN/stacks/rank-00000.txt for people and .json beside it for whoever compares them.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from megavlm.platform.runs import Attempt
from megavlm.platform.runs.lines import write_whole

SECONDS = 15.0
STATES = {"T": "stopped", "t": "stopped by a debugger", "D": "waits for a disk or a device", "Z": "dead"}
COMPARED = 3  # innermost frames
GONE = "gone"
MISSING = "py-spy is not installed; fix: pip install 'megavlm[slurm]' where the ranks run"


def main(argv: Sequence[str]) -> int:
    """Dump every rank of the attempt that beat from this machine."""
    attempt = Attempt(Path(argv[0]).resolve())
    folder = attempt.root / "stacks"
    folder.mkdir(exist_ok=True)
    here = [beat for beat in attempt.heartbeats() if beat["host"] == socket.gethostname()]
    with ThreadPoolExecutor(max(1, len(here))) as pool:
        list(pool.map(lambda beat: _dump(folder, beat), here))
    return 0


def _dump(folder: Path, beat: Mapping[str, Any]) -> None:
    pid = int(beat["pid"])
    state = process_state(pid)
    text = "" if state == GONE else _stack(pid, blocking=state not in STATES.values())
    told = {"rank": beat["rank"], "host": beat["host"], "pid": pid, "state": state, "frames": innermost(text)}
    name = f"rank-{beat['rank']:05d}"
    write_whole(folder / f"{name}.txt", f"rank {beat['rank']}, process {pid} on {beat['host']}: {state}\n\n{text}\n")
    write_whole(folder / f"{name}.json", json.dumps(told))


def process_state(pid: int) -> str:
    """What the kernel says of a process, in words."""
    try:
        letter = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return GONE
    return STATES.get(letter, "runs or waits")


def _stack(pid: int, blocking: bool) -> str:
    """py-spy's dump. A process that is stopped or in the kernel cannot be held: it is read as it stands."""
    found = Path(sys.executable).with_name("py-spy")
    program = str(found) if found.exists() else shutil.which("py-spy")
    if program is None:
        return MISSING
    for flags in [[], ["--nonblocking"]] if blocking else [["--nonblocking"]]:
        words = [program, "dump", "--pid", str(pid), *flags]
        try:
            done = subprocess.run(
                words, capture_output=True, text=True, timeout=SECONDS, env=os.environ | {"NO_COLOR": "1"}
            )
        except subprocess.TimeoutExpired:
            said = f"py-spy gave no answer in {SECONDS:.0f} s"
            continue
        if done.returncode == 0:
            return done.stdout
        said = f"py-spy failed: {done.stderr.strip()}"
    return said


def innermost(text: str) -> list[str]:
    """The innermost functions of the main thread, or of the first one, without line numbers."""
    threads = [part.splitlines() for part in text.split("\nThread ")[1:]]
    main = next((lines for lines in threads if "MainThread" in lines[0]), threads[0] if threads else [])
    return [re.sub(r":\d+\)", ")", line.strip()) for line in main[1 : 1 + COMPARED]]


def suspects(folder: Path) -> list[dict[str, Any]]:
    """{rank, host, why} of the ranks that hold the others up: in another state, else at another place than most."""
    told = [json.loads(path.read_text()) for path in sorted(folder.glob("rank-*.json"))]
    stuck = [(one, one["state"]) for one in told if one["state"] in {*STATES.values(), GONE}]
    if not stuck or len(stuck) == len(told):
        places = Counter(tuple(one["frames"]) for one in told if one["frames"])
        place, count = places.most_common(1)[0] if places else ((), 0)
        apart = [one for one in told if one["frames"] and tuple(one["frames"]) != place]
        stuck = [(one, f"in {one['frames'][0]}") for one in apart] if 2 * count > len(told) else []
    return [{"rank": one["rank"], "host": one["host"], "why": why} for one, why in stuck]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""Bring a pilot's run to its end in a process of its own, and note beside it what nobody else measures."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import time

from megavlm.platform.errors import InputError, MegaVLMError, SavedResumable
from megavlm.platform.runs import RunFolder
from megavlm.platform.runs.lines import append_line

from .memory import MemoryWatch

NOTED = (
    "pilot.jsonl"  # in the run: {"seconds", "finished"} of each attempt, and {"stage", "driver", "worker", "together"}
)
LOOK_SECONDS = 0.02
ENDS = {InputError.exit_code: InputError, SavedResumable.exit_code: SavedResumable}


def drive(folder: RunFolder) -> None:
    """Curate; returns at once when it is finished already.

    Raises what the run ended with: InputError, SavedResumable, MegaVLMError. What it said stands on stderr.
    """
    if folder.finished:
        return
    command = [sys.executable, "-m", "megavlm.data_curation.pilot.child", str(os.getpid()), str(folder.root)]
    started, code = time.monotonic(), None
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=2)
    watch = MemoryWatch(process.pid, folder)
    try:
        while (code := process.poll()) is None:
            watch.look()
            time.sleep(LOOK_SECONDS)
    finally:
        process.terminate()  # of a pilot that is interrupted: it saves
        process.wait()
        append_line(folder.path(NOTED), {"seconds": time.monotonic() - started, "finished": code == 0})
        for stage, peak in watch.peaks.items():
            append_line(folder.path(NOTED), {"stage": stage, **dataclasses.asdict(peak)})
    if code:
        raise ENDS.get(code, MegaVLMError)(
            f"the pilot's run ended with exit code {code}; the reason stands above",
            where=str(folder.root),
            fix="mend the cause and give the same command: what is done is not done again",
        )

"""What a pilot starts: `child PARENT_PID RUN` drives a run as `megavlm curate run` would, and dies with its parent.

A process of its own, so that start, imports and memory are those of a real run.
"""

from __future__ import annotations

import sys

from megavlm.platform.errors import MegaVLMError
from megavlm.platform.processes import die_with

from ..pipeline import curate
from ..run import CurationRun

if __name__ == "__main__":
    die_with(int(sys.argv[1]))
    sys.stdout = sys.stderr  # the pilot's own output is its parent's to write
    try:
        curate(CurationRun.open(sys.argv[2]))
    except MegaVLMError as error:
        print(f"megavlm: {error}", file=sys.stderr)
        sys.exit(error.exit_code)

"""What LocalExecutor starts: `child PARENT_PID VERB ...` runs one verb and dies with its parent.

USR1 is for the parent, which a scheduler asks to stop: sent to a whole job step, it must not kill a task.
"""

from __future__ import annotations

import signal
import sys

from ..cli import main
from ..processes import die_with

if __name__ == "__main__":
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    die_with(int(sys.argv[1]))
    sys.exit(main(sys.argv[2:]))

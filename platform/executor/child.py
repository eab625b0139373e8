"""What LocalExecutor starts: `child PARENT_PID VERB ...` runs one verb and dies with its parent."""

from __future__ import annotations

import sys

from ..cli import main
from ..processes import die_with

if __name__ == "__main__":
    die_with(int(sys.argv[1]))
    sys.exit(main(sys.argv[2:]))

"""Programs of unknown intent run here and nowhere else: in bubblewrap, without network or host files, under limits.

There is no way round: where the sandbox does not start, `require` raises, and nothing runs.
"""

from .checks import available, require
from .limits import Limits
from .process import Ended, listen, run, started

__all__ = ["Ended", "Limits", "available", "listen", "require", "run", "started"]

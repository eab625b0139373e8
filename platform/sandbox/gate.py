"""Between a sandbox and its owner, while it starts: the owner learns that it has, the program that its owner lives.

bwrap dies with its owner only once each of its processes has asked the kernel for that (prctl(2), PR_SET_PDEATHSIG). An
owner who is killed before would leave one behind. So the program waits for a word that only the owner can give.
"""

from __future__ import annotations

import os
import selectors

PROGRAM_AT = "/program.py"

# Runs inside, before the program. Without the owner's word there is an end of file.
PORTER = f"""
import os, runpy, sys
ready, go = map(int, sys.argv[1:3])
os.write(ready, b".")
os.read(go, 1) or os._exit(1)
os.close(ready), os.close(go)
sys.argv[:] = ["{PROGRAM_AT}", *sys.argv[3:]]
runpy.run_path("{PROGRAM_AT}", run_name="__main__")
"""


class Gate:
    """Two pipes; `inside` are the ends that the porter gets: to say ready on, to hear go from."""

    def __init__(self) -> None:
        self._ready, says_ready = os.pipe()
        hears_go, self._go = os.pipe()
        self.inside = (says_ready, hears_go)

    def leave_inside(self) -> None:
        """Close our copies of the sandbox's ends: only then does its death end the pipes."""
        for number in self.inside:
            os.close(number)

    def opened(self, seconds: float) -> bool:
        """Wait until the porter is ready and let the program run; False when it takes longer or the sandbox is gone."""
        try:
            with selectors.DefaultSelector() as waiting:  # select(2) knows no descriptor above 1023
                waiting.register(self._ready, selectors.EVENT_READ)
                said = waiting.select(seconds)
            started = bool(said) and bool(os.read(self._ready, 1))
            return started and os.write(self._go, b".") == 1
        except BrokenPipeError:
            return False
        finally:
            os.close(self._ready)
            os.close(self._go)

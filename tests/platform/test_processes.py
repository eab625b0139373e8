"""The memory of a process is its own, not that of whoever forked it."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np

from megavlm.platform.processes import resident

MIB = 2**20
CHILD = "from megavlm.platform.processes import resident; print(*resident())"


def test_the_peak_is_not_inherited_from_the_process_that_forked():
    held = np.ones(400 * MIB, np.uint8)
    assert resident()[1] > held.nbytes
    told = subprocess.run([sys.executable, "-c", CHILD], capture_output=True, text=True, check=True).stdout.split()
    now, most = map(int, told)
    assert 0 < now <= most < held.nbytes / 2


def test_another_process_and_one_that_is_gone():
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    assert resident(child.pid)[0] > 0
    child.communicate(b"\n")
    assert resident(child.pid) == (0, 0)
    assert resident(os.getpid())[1] >= resident("self")[0]

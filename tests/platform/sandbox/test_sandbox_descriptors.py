"""A process that holds many files starts a sandbox like any other."""

from __future__ import annotations

import os
import resource

import pytest

from megavlm.platform.sandbox import Limits, available, run

MANY = 1100  # select(2) ends at 1024


@pytest.mark.skipif(available() is not None, reason="no sandbox here")
def test_with_more_files_open_than_select_knows() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 2 * MANY:
        pytest.skip("this machine allows too few open files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2 * MANY), hard))
    held = [os.open(os.devnull, os.O_RDONLY) for _ in range(MANY)]
    try:
        ended = run("print('here')", limits=Limits())
    finally:
        for number in held:
            os.close(number)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert (ended.code, ended.stdout.strip()) in {(0, b"here"), (0, "here")}

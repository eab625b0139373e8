from __future__ import annotations

import os
import signal
import time

import pytest

from megavlm.platform.runs import Attempt, RunFolder, SaveRequest


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_a_signal_asks_for_a_save_and_the_old_handler_comes_back(number):
    before = signal.getsignal(number)
    with SaveRequest() as request:
        assert not request.requested
        os.kill(os.getpid(), number)
        assert request.requested
        assert request.signal == number.name
    assert signal.getsignal(number) is before


def test_a_wish_in_the_attempts_folder_is_heard_by_other_processes_too(tmp_path):
    attempt = RunFolder(tmp_path / "run").new_attempt()
    with SaveRequest(attempt) as request, SaveRequest() as deaf:
        assert not request.requested
        Attempt(attempt.root).request_save()
        deadline = time.monotonic() + 5
        while not request.requested and time.monotonic() < deadline:
            time.sleep(0.05)
        assert request.requested and request.signal == "save-requested" and not deaf.requested

from __future__ import annotations

import os
import signal

import pytest

from megavlm.platform.runs import SaveRequest


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_a_signal_asks_for_a_save_and_the_old_handler_comes_back(number):
    before = signal.getsignal(number)
    with SaveRequest() as request:
        assert not request.requested
        os.kill(os.getpid(), number)
        assert request.requested
        assert request.signal == number.name
    assert signal.getsignal(number) is before

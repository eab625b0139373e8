"""The published statement, which the tests and the processes that they start share."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest
from ranks import load


@pytest.fixture(scope="session")
def worker() -> ModuleType:
    """encoder_worker.py."""
    return load(Path(__file__).with_name("encoder_worker.py"))

"""The published statement, which the tests and the processes that they start share."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="session")
def worker() -> ModuleType:
    """encoder_worker.py."""
    spec = importlib.util.spec_from_file_location("encoder_worker", Path(__file__).with_name("encoder_worker.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module

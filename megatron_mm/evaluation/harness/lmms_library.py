"""lmms-eval, loaded quietly and only where it is needed; a missing one is a ConfigError with the line to install it."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from PIL import ImageFile

from megavlm.kernels import torchvision
from megavlm.platform.errors import ConfigError

INSTALL = 'pip install "megavlm[eval]"'


def load(name: str = "") -> ModuleType:
    """lmms-eval, or a module in it; raises ConfigError where it is not installed."""
    torchvision.load()  # before lmms-eval and transformers look for it
    cut_off = ImageFile.LOAD_TRUNCATED_IMAGES
    try:
        return importlib.import_module(f"lmms_eval.{name}".rstrip("."))
    except ModuleNotFoundError as error:
        raise ConfigError(f"picture benchmarks need '{error.name}'", where="lmms-eval", fix=INSTALL) from None
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = cut_off  # lmms-eval allows them, for the whole process


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """lmms-eval's log lines are left out; raises ConfigError where it is not installed."""
    load()
    from loguru import logger

    logger.disable("lmms_eval")
    try:
        yield
    finally:
        logger.enable("lmms_eval")


def tasks_folder() -> Path:
    """Where lmms-eval keeps its tasks."""
    return Path(load("tasks").__file__ or "").parent

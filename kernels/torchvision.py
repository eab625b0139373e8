"""The one way in to torchvision, and to what imports it (timm, open_clip, transformers' image models).

PyPI's torchvision wheel is linked against CUDA. On CPU torch its C extension does not load, and the import then fails
at a fake registration of operators that nobody defined. Defining the schemas of those two operators first is enough:
all of torchvision works but `torchvision.io` and the box operators themselves, which nothing here uses.
"""

from __future__ import annotations

import importlib.util
import sys
from functools import cache
from pathlib import Path
from types import ModuleType

BOX_OPERATORS = ("nms", "qnms")
SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"


@cache
def load() -> ModuleType:
    """Import torchvision and return it; call before importing timm or open_clip.

    Where torchvision's own C extension loads (CUDA torch), nothing is registered. Raises ImportError when torchvision
    is not installed.
    """
    import torch

    if "torchvision" not in sys.modules and not _extension_loads():
        library = torch.library.Library("torchvision", "FRAGMENT")
        for name in BOX_OPERATORS:
            library.define(name + SCHEMA)
        _keep_alive(library)
    import torchvision

    return torchvision


def _extension_loads() -> bool:
    import torch

    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        raise ImportError("torchvision is not installed; `pip install torchvision` in the version that matches torch")
    candidates = sorted(Path(spec.origin).parent.glob("_C*.so"))
    try:
        for path in candidates:
            torch.ops.load_library(str(path))
    except OSError:
        return False
    return bool(candidates)


@cache
def _keep_alive(library: object) -> object:
    """A torch.library.Library withdraws its definitions when it is collected; the cache holds it."""
    return library

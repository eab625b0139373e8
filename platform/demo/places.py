"""Where the demo keeps its things. Recipes write `{demo}` for the folder of its data."""

from __future__ import annotations

import os
from pathlib import Path

from ..runs import default_runs_root

MARK = "{demo}"
VARIABLE = "MEGAVLM_DEMO_DATA"


def demo_root() -> Path:
    """The demo's folder: runs/demo, or `demo` under $MEGAVLM_RUNS."""
    return default_runs_root() / "demo"


def demo_data() -> Path:
    """The folder of the demo's data: $MEGAVLM_DEMO_DATA, or `data` in the demo's folder."""
    return Path(os.environ.get(VARIABLE) or demo_root() / "data")


def expand(text: str) -> str:
    """`text` with `{demo}` replaced by the folder of the demo's data."""
    return text.replace(MARK, str(demo_data()))

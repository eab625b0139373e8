"""`python serve_tiny.py FOLDER PORT`: `transformers serve` on a tiny LLaVA with random weights, made if need be.

Its words are nonsense, the same for the same image and prompt; everything else about the server is the real thing.
"""

from __future__ import annotations

import sys
from pathlib import Path

from megavlm.data_curation.recaption.tiny import random_captioner

sys.modules["torchvision"] = None  # type: ignore[assignment]  # linked against CUDA on PyPI; without it, Pillow decodes


def make(folder: Path) -> None:
    for part in random_captioner():
        part.save_pretrained(folder)


if __name__ == "__main__":
    folder, port = sys.argv[1:]
    if not (Path(folder) / "config.json").exists():
        make(Path(folder))
    from transformers.cli.transformers import main

    sys.argv = ["transformers", "serve", folder, "--port", port, "--host", "127.0.0.1", "--device", "cpu"]
    sys.exit(main())

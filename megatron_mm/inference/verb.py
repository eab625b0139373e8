"""`megavlm generate`: an answer from a trained stage. Loads torch only once everything it was given is checked."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from megavlm.platform.cli import parser
from megavlm.platform.errors import ConfigError, InputError
from megavlm.platform.images import decode

from ..checkpoints.listing import Source, resolve
from ..config import Parallel
from ..data.build import StageData
from ..layout import check_layout
from ..torchrun import run_on_ranks

WORKER = "megavlm.megatron_mm.inference.worker"

EPILOG = """\
examples:
  megavlm generate nvlm-d-mini --stage sft --image photo.jpg "How many squares are there?"
  megavlm generate runs/nvlm-d-mini/checkpoints/language/step-000180 "Spell cat backwards."
"""


@dataclasses.dataclass(frozen=True)
class Request:
    """What to generate, and how; plain data, so that it can be handed to other ranks."""

    source: str
    stage: str | None
    images: list[str]
    prompt: str
    max_new_tokens: int
    temperature: float
    top_p: float
    seed: int
    tp: int


def main(argv: Sequence[str]) -> int:
    """Generate and print."""
    args = _arguments(argv)
    request = Request(**{field.name: getattr(args, field.name) for field in dataclasses.fields(Request)})
    check(request)
    told = answer_here(request) if request.tp == 1 else answer_on_ranks(request)
    print(json.dumps(told, indent=2) if args.json else told["text"])
    return 0


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    p = parser("generate", epilog=EPILOG)
    p.add_argument("source", metavar="RUN|CKPT", help="a run (folder or name), or a checkpoint's folder in one")
    p.add_argument("prompt", metavar="PROMPT", help="the user's turn; <image> marks where an image goes, else in front")
    p.add_argument("--stage", help="stage of the run (default: the last trained one)")
    p.add_argument(
        "--image", dest="images", metavar="FILE", action="append", default=[], help="may be given repeatedly"
    )
    p.add_argument("--max-new-tokens", type=int, default=64)
    p.add_argument("--temperature", type=float, default=0.0, help="0, the default, is greedy")
    p.add_argument("--top-p", type=float, default=1.0, help="sample from the most likely tokens of this total")
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--tp", type=int, default=1, help="split the model over this many devices (default 1)")
    return p.parse_args(argv)


def check(request: Request) -> Source:
    """Everything that can be wrong before torch is loaded; raises ConfigError or InputError."""
    source = resolve(request.source, request.stage)
    for key in ("max_new_tokens", "tp"):
        if getattr(request, key) < 1:
            raise ConfigError(f"--{key.replace('_', '-')} {getattr(request, key)} is less than 1")
    check_layout(StageData.of(source.recipe, source.stage).model, Parallel(tp=request.tp))
    for image in request.images:
        read_image(image)
    return source


def read_image(path: str) -> bytes:
    """An image's bytes; raises InputError naming the file when it is missing or no image."""
    try:
        data = Path(path).read_bytes()
        decode(data)
    except OSError as error:
        raise InputError(f"cannot read the image: {error.strerror}", where=path) from None
    except InputError as error:
        raise InputError(error.what, where=path, fix=error.fix) from None
    return data


def answer_here(request: Request) -> dict[str, Any]:
    """In this process."""
    from ..backend import shutdown
    from .worker import answer

    try:
        return answer(request)
    finally:
        shutdown()


def answer_on_ranks(request: Request) -> dict[str, Any]:
    """On tp processes that torchrun starts; rank 0 leaves the answer in a file."""
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "answer.json"
        print(f"starting {request.tp} ranks", file=sys.stderr)
        run_on_ranks(WORKER, [json.dumps(dataclasses.asdict(request)), str(result)], request.tp)
        return json.loads(result.read_text())

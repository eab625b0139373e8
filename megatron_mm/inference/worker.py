"""Answers one request of `megavlm generate`: in the verb's own process, or on every rank that torchrun started."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch.distributed as dist

from megavlm.platform.processes import die_with

from ..backend import shutdown
from ..checkpoints.listing import resolve
from ..config import Parallel
from ..data.build import StageData
from ..data.measure import template
from .generate import generate
from .load import load_stage
from .prompt import encode_prompt, user_message
from .sampling import Sampling
from .verb import Request, read_image


def answer(request: Request) -> dict[str, Any]:
    """Load the weights and generate; the same on every rank. Stable keys, seconds without the loading."""
    source = resolve(request.source, request.stage)
    spec = StageData.of(source.recipe, source.stage)
    tokenizer = spec.tokenizer()
    images = [read_image(path) for path in request.images]
    message = user_message(request.prompt, len(images))
    prompt = encode_prompt([message], images, tokenizer, spec.model, spec.data)
    sampling = Sampling(request.temperature, request.top_p, request.seed)
    model = load_stage(source.run, source.recipe, source.stage, Parallel(tp=request.tp), source.checkpoint)
    started = time.monotonic()
    stop = {template(spec.model, tokenizer, spec.data.template).stop}
    tokens = list(generate(model, prompt, stop=stop, max_new_tokens=request.max_new_tokens, sampling=sampling))
    return {
        "text": tokenizer.decode(tokens),
        "tokens": tokens,
        "finished": tokens[-1] in stop,
        "prompt_tokens": prompt.tokens.shape[1],
        "tiles": len(prompt.tiles),
        "stage": source.stage,
        "checkpoint": str(source.checkpoint),
        "seconds": round(time.monotonic() - started, 3),
    }


def main(request: str, result: str) -> None:
    """One rank's part; rank 0 writes the answer to `result`."""
    die_with(os.getppid())
    told = answer(Request(**json.loads(request)))
    if dist.get_rank() == 0:
        Path(result).write_text(json.dumps(told))
    shutdown()


if __name__ == "__main__":  # checkpoint loading may start processes that import the main module
    main(*sys.argv[1:])

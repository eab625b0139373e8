"""What the ranks of test_stalls.py run: two replicas, of which one is slow, and then stops answering."""

from __future__ import annotations

import sys
import time
from datetime import timedelta

import torch.distributed as dist

from megavlm.megatron_mm import backend
from megavlm.megatron_mm.training import encode
from megavlm.megatron_mm.training.loop import Session, StageTrainer
from megavlm.megatron_mm.training.pulse import Pulse
from megavlm.platform.config import load_recipe
from megavlm.platform.runs import RunFolder


def main(folder: str) -> None:
    encode.TIMEOUT = timedelta(seconds=6)
    backend.start_processes()
    run = RunFolder.open(folder)
    attempt, rank = run.current_attempt(), dist.get_rank()
    recipe = load_recipe(str(run.path("config.yaml")))
    trainer = StageTrainer(Session(run, attempt, recipe, Pulse(attempt, rank, 2), lambda: False), "language")

    def delay(module: object, inputs: object) -> None:
        if rank == 1:
            time.sleep(0.2 if trainer.step < 5 else 20)

    trainer.model.tower.encoder.register_forward_pre_hook(delay)
    try:
        trainer.train()
    except Exception as error:
        attempt.event("failed", rank=rank, what=str(error), fix=getattr(error, "fix", None))
        raise
    backend.shutdown()


if __name__ == "__main__":
    main(sys.argv[1])

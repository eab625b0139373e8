"""Where metrics may go besides metrics.jsonl. A new tracker is one file here and one line in this table."""

from megavlm.platform.registry import Registry

TRACKERS = Registry("tracker", {
    "tensorboard": "megavlm.megatron_mm.training.trackers.tensorboard:TensorBoard",
    "wandb": "megavlm.megatron_mm.training.trackers.wandb:WandB",
})  # fmt: skip

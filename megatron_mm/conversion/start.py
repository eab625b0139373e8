"""A stage that starts from a checkpoint of another run, which may hold some of the model's axes only."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megatron.core.dist_checkpointing.core import CheckpointingException
from megatron.core.dist_checkpointing.mapping import ShardedObject
from torch.distributed.checkpoint.api import CheckpointException

from megavlm.platform.errors import InputError

from ..checkpoints.listing import COMPLETE
from ..checkpoints.safe_load import load_state
from ..config import AXES
from .ours import axis_of

if TYPE_CHECKING:
    from ..model import VisionLanguageModel


def fill_parts(model: VisionLanguageModel, checkpoint: Path) -> None:
    """Read this rank's part of every weight of the axes that the checkpoint holds, and leave the others as they are.

    Raises InputError for a checkpoint that is damaged, or of another model.
    """
    held = parts_of(checkpoint)
    wanted = {part: _of(model, state, held) for part, state in model.sharded_state_dict().items()}
    try:
        found = load_state(wanted, checkpoint)
    except (CheckpointException, CheckpointingException, KeyError) as error:  # torch's is no Exception
        why = str(error).strip().splitlines()[-1]
        fix = "import it for this recipe's model, or give a run of it"
        raise InputError(f"not this model's weights: {why}", where=str(checkpoint), fix=fix) from None
    model.load_parts({part: found.get(part, {}) for part in wanted})


def parts_of(checkpoint: Path) -> list[str]:
    """The axes that a complete checkpoint holds: all of them, unless it was imported."""
    return json.loads((checkpoint / COMPLETE).read_bytes()).get("parts", list(AXES))


def _of(model: VisionLanguageModel, state: dict[str, Any], held: list[str]) -> dict[str, Any]:
    """The weights of these axes. What FP8 keeps beside them is no weight."""
    return {
        name: value
        for name, value in state.items()
        if not isinstance(value, ShardedObject) and axis_of(model.spec, name) in held
    }

"""Whether a checkpoint holds exactly what published weights say, and whether both models then say the same."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..contracts import BuildContext
from ..injection.inline import Inline
from .accounts import Pair
from .importing import Import, joined
from .stored import Stored

PROMPTS, LENGTH = 3, 24  # of random tokens
TOLERANCE = 1e-4  # of the largest logit, in float32


class Difference(NamedTuple):
    """A parameter that is not what was published."""

    parameter: str
    published: tuple[str, ...]
    why: str


def differences(plan: Import, checkpoint: Path) -> Iterator[Difference]:
    """Compare bit for bit, one parameter at a time; raises InputError for a parameter that the checkpoint lacks."""
    stored = Stored(checkpoint)
    for source, own in zip(plan.sources, plan.accounts, strict=True):
        for pair in own.pairs:
            why = _difference(joined(pair, source.published), stored.read(pair.slot))
            if why:
                yield Difference(pair.slot.said, pair.theirs, why)


def _difference(wanted: Tensor, found: Tensor) -> str | None:
    """In words, or None."""
    if wanted.dtype != found.dtype:
        return f"published as {wanted.dtype}, stored as {found.dtype}"
    unequal = (_bits(wanted) != _bits(found)).view(*wanted.shape, -1).any(-1)
    return f"{int(unequal.sum()):,} of {wanted.numel():,} values differ" if bool(unequal.any()) else None


def _bits(tensor: Tensor) -> Tensor:
    return tensor.contiguous().view(torch.uint8)


def language_model(plan: Import) -> str | None:
    """Where the published language model is that transformers can run beside ours; None where there is none."""
    for source in plan.sources:
        if list(source.format.maps) == ["decoder"] and source.published.config is not None:
            return str(source.published.path)
    return None


@torch.no_grad()
def logit_difference(plan: Import, path: str, checkpoint: Path, context: BuildContext) -> dict[str, Any]:
    """The largest difference of any logit between transformers' model and ours, both in float32, on random tokens."""
    pairs = next(own.pairs for source, own in zip(plan.sources, plan.accounts, strict=True) if "decoder" in source.axes)
    ours, theirs = _ours(pairs, checkpoint, context), _theirs(path)
    rows = theirs.config.vocab_size  # ours may have more
    tokens = torch.randint(0, rows, (PROMPTS, LENGTH), generator=torch.Generator().manual_seed(0))
    wanted = theirs(tokens).logits
    logits = ours(tokens, torch.arange(LENGTH).expand(PROMPTS, -1), None)[..., :rows]
    largest, scale = float((logits - wanted).abs().max()), float(wanted.abs().max())
    return {"largest_difference": largest, "largest_logit": scale, "equal": largest <= TOLERANCE * scale}


def _ours(pairs: list[Pair], checkpoint: Path, context: BuildContext) -> torch.nn.Module:
    model = pairs[0].spec.build(context, Inline())
    parameters, stored = dict(model.named_parameters()), Stored(checkpoint)
    for pair in pairs:
        parameters[pair.slot.name].copy_(stored.read(pair.slot))
    return model.eval()


def _theirs(path: str) -> Any:
    from megavlm.kernels import torchvision

    torchvision.load()  # transformers imports it
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, trust_remote_code=False).eval()

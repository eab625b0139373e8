"""What a baseline makes of some texts, measured once and kept: RUN/drift/BASELINE.safetensors.

It holds the texts (`tokens`, `target`, `offsets`), and for every token that counts the ids of the likeliest, `ids`
int32 [rows, top], and log-probabilities of these and of all others together, `logprobs` float32 [rows, top + 1]. Its
metadata say of what: set, tokenizer, template, checkpoint.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from megatron.core import parallel_state
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save
from torch import Tensor

from megavlm.platform.storage import write_atomic

from ...backend import device
from ...model import VisionLanguageModel
from .likeliest import bucketed, divergence, likeliest
from .passes import through
from .texts import Texts

About = dict[str, str]


@dataclasses.dataclass(frozen=True)
class Reference:
    """Texts, and what the baseline makes of them: ids int32 [rows, k], logprobs float32 [rows, k + 1]."""

    texts: Texts
    ids: np.ndarray
    logprobs: np.ndarray

    def write(self, path: Path, about: About) -> None:
        """Put it in place, whole."""
        path.parent.mkdir(parents=True, exist_ok=True)
        texts = {field.name: getattr(self.texts, field.name) for field in dataclasses.fields(Texts)}
        found = {**texts, "ids": self.ids, "logprobs": self.logprobs}
        told = {**about, "texts": self.texts.digest}
        write_atomic(path, save({name: np.ascontiguousarray(each) for name, each in found.items()}, metadata=told))


def read_reference(path: Path, about: About) -> Reference | None:
    """What stands there, if it is of just this and whole; otherwise None: it has to be measured anew."""
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="numpy") as file:
            told = file.metadata() or {}
            found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 it is no mapping
        texts = Texts(found["tokens"], found["target"], found["offsets"])
        reference = Reference(texts, found["ids"], found["logprobs"])
    except (SafetensorError, KeyError):
        return None
    digest = told.pop("texts", "")
    return reference if told == about and digest == texts.digest else None


def measure(
    model: VisionLanguageModel, texts: Texts, length: int, top: int, alive: Callable[[], object]
) -> Reference | None:
    """What `model` makes of texts; every rank calls it, and the first is told. `length`: positions of a pack.

    In evaluation mode and without gradients, as `untouched` puts it.
    """

    def look(logits: Tensor, rows: Tensor) -> tuple[np.ndarray, ...]:
        ids = likeliest(logits, min(top, model.spec.decoder.vocab))
        logprobs = bucketed(logits, ids)
        return rows.cpu().numpy(), ids.int().cpu().numpy(), logprobs.float().cpu().numpy()

    mine = through(model, texts, length, look, alive)
    parts: list[list[tuple[np.ndarray, ...]]] | None = [[]] * dist.get_world_size() if dist.get_rank() == 0 else None
    dist.gather_object(mine if _speaks() else [], parts, dst=0)
    if parts is None:
        return None
    rows, ids, logprobs = (
        np.concatenate(column) for column in zip(*(some for part in parts for some in part), strict=True)
    )
    order = np.argsort(rows)
    assert len(rows) == texts.rows, "every token that counts is measured once"
    return Reference(texts, ids[order], logprobs[order])


def kl(model: VisionLanguageModel, reference: Reference, length: int, alive: Callable[[], object]) -> float:
    """KL(baseline || model) in nats a token over the likeliest tokens and the rest, the same on every rank.

    A lower bound of that over the whole vocabulary (likeliest.py). Every rank calls it, inside `untouched`.
    """

    def look(logits: Tensor, rows: Tensor) -> float:
        at = rows.cpu().numpy()
        ids, before = (torch.from_numpy(each[at]).to(logits.device) for each in (reference.ids, reference.logprobs))
        return float(divergence(before, bucketed(logits, ids.long())).sum())

    mine = through(model, reference.texts, length, look, alive)
    total = torch.tensor(sum(mine) if _speaks() else 0.0, dtype=torch.float64, device=device())
    dist.all_reduce(total)
    return float(total) / reference.texts.rows


def _speaks() -> bool:
    """Of ranks that hold the same figures, one: tensor-parallel ones agree, and the last stage alone has any."""
    return parallel_state.get_tensor_model_parallel_rank() == 0


def about_of(**told: object) -> About:
    """Metadata of a file: texts alone."""
    return {key: each if isinstance(each, str) else json.dumps(each, sort_keys=True) for key, each in told.items()}

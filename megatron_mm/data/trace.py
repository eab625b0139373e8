"""From a sample to the packs and steps that hold it, and from a step to its samples."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow.compute as pc

from megavlm.platform.errors import InputError
from megavlm.platform.shards import ShardReader

from .manifest import Manifest
from .skips import batch_of, read_skips, step_of


def places(manifest: Manifest, number: int, index: int) -> Iterator[dict[str, int | None]]:
    """Where sample `index` of set `number` stands: row, place in it, pass, and the step that learns it (from 1).

    The step is None where the run leaves the global batch out.
    """
    skips = read_skips(manifest.path.parent)
    for first, block in manifest.blocks():
        hits = (block["index"].flatten().to_numpy() == index) & (block["set"].flatten().to_numpy() == number)
        if not hits.any():
            continue
        rows, epochs = pc.list_parent_indices(block["index"]).to_numpy(), block["epoch"].flatten().to_numpy()
        starts = np.searchsorted(rows, np.arange(block.num_rows))
        for k in np.flatnonzero(hits).tolist():
            row = first + int(rows[k])
            batch = manifest.batch_of(row)
            told: dict[str, int | None] = {"row": row, "place": k - int(starts[rows[k]]), "epoch": int(epochs[k]) + 1}
            step = step_of(batch, skips)
            yield told | {"batch": batch, "step": None if step is None else step + 1}


def find_sample(manifest: Manifest, sets: Mapping[str, ShardReader], wanted: str) -> tuple[str, int]:
    """(set, number) of a sample given as SET/KEY, as SET#NUMBER, or as a KEY that is looked for in every set."""
    name, mark, rest = wanted.partition("#")
    if mark and name in sets and rest.isdigit() and int(rest) < len(sets[name]):
        return name, int(rest)
    candidates = [(set_name, wanted.removeprefix(f"{set_name}/")) for set_name in sets]
    named = [pair for pair in candidates if pair[1] != wanted]
    for set_name, key in [*named, *candidates]:
        try:
            return set_name, sets[set_name].find(key)
        except KeyError:
            continue
    raise InputError(f"no sample '{wanted}'", where=str(manifest.path), fix=f"SET/KEY, with one of {', '.join(sets)}")


def trace_sample(manifest: Manifest, sets: Mapping[str, ShardReader], wanted: str) -> dict[str, Any]:
    """A sample by its key: every pack and step that holds it."""
    name, index = find_sample(manifest, sets, wanted)
    number = next(k for k, told in enumerate(manifest.sets) if told["name"] == name)
    found = list(places(manifest, number, index))
    return {"set": name, "key": sets[name].key(index), "index": index, "times": len(found), "places": found}


def trace_step(manifest: Manifest, sets: Mapping[str, ShardReader], step: int) -> dict[str, Any]:
    """What step `step` (from 1, as metrics count them) learns from, pack by pack."""
    skips = read_skips(manifest.path.parent)
    batch = batch_of(step - 1, skips)
    if step < 1 or batch >= manifest.batches:
        fix = f"steps run from 1 to {manifest.batches - skips.count}"
        raise InputError(f"step {step} is not in the manifest", where=str(manifest.path), fix=fix)
    samples = [
        {
            "row": pack.row,
            "set": entry.set,
            "key": sets[entry.set].key(entry.index),
            "index": entry.index,
            "epoch": entry.epoch + 1,
            "tokens": entry.tokens,
            "targets": entry.targets,
            "tiles": entry.tiles,
        }
        for pack in manifest.batch(batch)
        for entry in pack.entries
    ]
    return {"step": step, "batch": batch, "packs": len({s["row"] for s in samples}), "samples": samples}


def samples_of(manifest: Manifest, folders: Mapping[str, str], rows: Sequence[int], most: int) -> list[str]:
    """The first samples of some rows as SET/KEY, or SET#NUMBER where the set is no longer where it was packed."""
    sets, found = manifest.open_sets(folders), []
    for entry in (entry for row in rows for entry in manifest[row].entries):
        try:
            found.append(f"{entry.set}/{sets[entry.set].key(entry.index)}")
        except InputError:
            found.append(f"{entry.set}#{entry.index}")
        if len(found) == most:
            break
    return found

"""Unreadable samples: the substitutes that the manifest names stand in their places, on every process alike."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from itertools import accumulate
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from megavlm.megatron_mm.contracts import StepBatch
from megavlm.megatron_mm.data.assemble import GREY, IGNORED
from megavlm.megatron_mm.data.build import StageData, build_manifest
from megavlm.megatron_mm.data.loader import PackLoader, open_loader
from megavlm.megatron_mm.data.manifest import Entry, Manifest
from megavlm.megatron_mm.data.shares import Grid, Seat
from megavlm.megatron_mm.data.tokenizer import load_tokenizer
from megavlm.platform.config import load_recipe

MINI, ROOM = load_tokenizer("mini"), "stages.only.mixture.sequence_length=128"
WIDE, HIGH, SMALL = (90, 40), (40, 90), (28, 28)
# 0 and 1 are cut off, and so are 5 and 6, which are the only ones of their kind; the text of 8 is spoilt later
SIZES = [WIDE, WIDE, WIDE, WIDE, WIDE, HIGH, HIGH, SMALL, SMALL, SMALL]
CUT, SPOILT, LOST = {0, 1, 5, 6}, {8}, {5, 6}


def picture(size: tuple[int, int], number: int) -> bytes:
    pixels = np.random.default_rng(number).integers(0, 256, (size[1], size[0], 3), np.uint8)
    out = BytesIO()
    Image.fromarray(pixels).save(out, "jpeg")
    return out.getvalue()[: len(out.getvalue()) // (2 if number in CUT else 1)]


def sample(number: int) -> dict[str, object]:
    question = f"<image>{'What ' * (9 - number)}{number}?"  # each is longer than the next
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": f"it is {number}"}]
    return {"jpg": picture(SIZES[number], number), "json": {"messages": messages}}


@pytest.fixture
def spec(make_recipe: Callable[..., Path], tmp_path: Path) -> StageData:
    recipe = make_recipe(vqa={f"p{k}": sample(k) for k in range(len(SIZES))})
    of = StageData.of(load_recipe(str(recipe), [ROOM]), "only")
    build_manifest(of, tmp_path / "packs")
    [tar] = (tmp_path / "vqa").glob("*.tar")
    tar.write_bytes(tar.read_bytes().replace(b"What 8?", b'What"8?'))
    return of


def loader(spec: StageData, path: Path, events: list[dict[str, object]]) -> PackLoader:
    return open_loader(spec, Manifest(path), lambda kind, **fields: events.append({"kind": kind, **fields}))


class Meeting:
    """What processes that call `agree` one after the other would tell each other, for as many threads."""

    def __init__(self, count: int) -> None:
        self._barrier, self._said = threading.Barrier(count, timeout=30), dict[int, set[tuple[int, int]]]()
        self.calls = 0

    def agree(self, member: int, problems: tuple[tuple[int, int], ...]) -> set[tuple[int, int]]:
        self._said[member] = set(problems)
        self._barrier.wait()
        told = set().union(*self._said.values())
        self.calls += self._barrier.wait() == 0
        return told


def settled(loaders: list[PackLoader], number: int, seats: list[Seat]) -> tuple[list[StepBatch], int]:
    """The batches of all processes, each in a thread, and how often they met."""
    meeting = Meeting(len(seats))

    def one(k: int) -> StepBatch:
        made = loaders[k].batch(number, seats[k])
        return loaders[k].settled(made, lambda problems: meeting.agree(k, tuple(problems)), seats[k])

    with ThreadPoolExecutor(len(seats)) as pool:
        return list(pool.map(one, range(len(seats)))), meeting.calls


def alone(of: PackLoader, number: int) -> StepBatch:
    return of.settled(of.batch(number), set)


def stands(entry: Entry) -> int | None:
    """The sample of the pictures that is to be learnt in an entry's place."""
    bad = CUT | SPOILT
    if entry.index not in bad:
        return entry.index
    return entry.substitute if entry.substitute >= 0 and entry.substitute not in bad else None


def places(manifest: Manifest, batch: StepBatch) -> Iterator[tuple[Entry, str, torch.Tensor, torch.Tensor]]:
    """(entry, what is learnt in its place, weights there, tiles there) of every picture of a batch of one process."""
    tile = 0
    for row, pack in zip(batch.rows, batch.packs, strict=True):
        entries = manifest[row].entries
        ends = list(accumulate(entry.tokens for entry in entries))
        assert pack.cu_seqlens[1 : len(ends) + 1].tolist() == ends  # sizes stay
        for entry, end in zip(entries, ends, strict=True):
            labels = pack.labels[0, end - entry.tokens : end]
            weights = pack.loss_weights[0, end - entry.tokens : end]
            assert torch.equal(weights > 0, labels != IGNORED)
            if entry.set == "vqa":
                yield (
                    entry,
                    MINI.show(labels[labels != IGNORED].tolist()),
                    weights,
                    batch.tiles[tile : tile + entry.tiles],
                )
            tile += entry.tiles


def test_substitutes_are_learnt_in_the_places_of_what_cannot_be_read(spec: StageData, tmp_path: Path) -> None:
    events: list[dict[str, object]] = []
    manifest, of, met = Manifest(tmp_path / "packs"), loader(spec, tmp_path / "packs", events), {}
    batches = [alone(of, step) for step in range(manifest.batches)]
    shown = {entry.index: tiles for batch in batches for entry, _, _, tiles in places(manifest, batch)}
    for batch in batches:
        for entry, learnt, weights, tiles in places(manifest, batch):
            other = met[entry.index] = stands(entry)
            assert learnt == ("" if other is None else f"it is {other}<|im_end|>")
            assert weights.sum() == (0 if other is None else (weights > 0).sum())
            if other is None and entry.index in LOST:
                assert (tiles == GREY).all()
            elif other is not None:
                assert torch.equal(tiles, shown[other]) and not (tiles == GREY).all()
    assert met == {**{k: k for k in range(10)}, 0: None, 1: 2, 5: None, 6: None, 8: 9}
    told = {(e["set"], e["key"]): e["reason"] for e in events}
    broken = {("vqa", f"p{k}"): "truncated" for k in CUT}
    assert len(told) == len(events) and told == {**broken, ("vqa", "p8"): "invalid_json"}
    instead = {e["key"]: e["instead"] for e in events}
    assert (instead["p0"], instead["p8"]) == ("p1", "p9")
    assert instead["p1"] in ("p2", None)  # none where it was met in the place of 0


def same(a: StepBatch, b: StepBatch) -> bool:
    packs = zip(a.packs, b.packs, strict=True)
    tensors = [(x, y) for p, q in packs for x, y in zip(vars(p).values(), vars(q).values(), strict=True)]
    return a.rows == b.rows and all(x is y is None or torch.equal(x, y) for x, y in [*tensors, (a.tiles, b.tiles)])


@pytest.mark.parametrize(("dp", "pp", "cp", "tp"), [(2, 1, 1, 1), (3, 1, 1, 2), (1, 2, 2, 2)])
def test_every_layout_puts_the_same_in_their_places(
    spec: StageData, tmp_path: Path, dp: int, pp: int, cp: int, tp: int
) -> None:
    grid, events = Grid(dp, pp, cp), []
    seats = [Seat(grid, member, tp, rank) for member in range(grid.size) for rank in range(tp)]
    loaders = [loader(spec, tmp_path / "packs", events) for _ in seats]
    one, manifest = loader(spec, tmp_path / "packs", []), Manifest(tmp_path / "packs")
    for step in range(manifest.batches):
        whole, (parts, _) = alone(one, step), settled(loaders, step, seats)
        wanted = dict(zip(whole.rows, whole.packs, strict=True))
        sizes = [manifest[row].tiles for row in whole.rows]
        tiles = dict(zip(whole.rows, whole.tiles.split(sizes), strict=True))
        assert len({part.problems for part in parts}) == 1 and parts[0].problems == whole.problems
        for part in parts:
            for row, pack in zip(part.rows, part.packs, strict=True):
                assert row is None or torch.equal(pack.labels, wanted[row].labels)
                assert row is None or torch.equal(pack.tokens, wanted[row].tokens)
        order = [row for d in range(dp) for row in next(p.rows for p, s in zip(parts, seats, strict=True) if
                 grid.place(s.member)[0] == d) if row is not None]  # fmt: skip
        decoded = sorted(
            (part.shares.decodes(seat.member, seat.tp, seat.tp_rank).start, k)
            for k, (part, seat) in enumerate(zip(parts, seats, strict=True))
            if len(part.tiles)
        )
        assert torch.equal(torch.cat([parts[k].tiles for _, k in decoded]), torch.cat([tiles[row] for row in order]))
    told = [event["key"] for event in events]
    assert sorted(told) == ["p0", "p1", "p5", "p6", "p8"]  # each once, by one process


def test_a_resume_meets_the_same_and_what_is_known_is_not_made_twice(spec: StageData, tmp_path: Path) -> None:
    of, manifest = loader(spec, tmp_path / "packs", []), Manifest(tmp_path / "packs")
    batches = [alone(of, step) for step in range(manifest.batches)]
    for step in (1, 3, manifest.batches - 1):
        assert same(alone(loader(spec, tmp_path / "packs", []), step), batches[step])
        made = of.batch(step)  # all is known by now
        assert made.problems and of.settled(made, set) is made
    streamed = list(of.batches(2, 5, Seat()))
    assert all(same(a, b) for a, b in zip(streamed, batches[2:5], strict=True))


def test_who_needs_what_stays_where_tiles_are_beside_the_sequence(spec: StageData, tmp_path: Path) -> None:
    """NVLM-H: of every image the thumbnail stands in the sequence, though its sample cannot be read."""
    recipe = load_recipe(str(tmp_path / "tiny.yaml"), [ROOM, "model.injection={name: hybrid, every: 1}"])
    hybrid = StageData.of(recipe, "only")
    shutil.move(tmp_path / "packs", tmp_path / "inline")
    tar = next((tmp_path / "vqa").glob("*.tar"))
    spoilt = tar.read_bytes()
    tar.write_bytes(spoilt.replace(b'What"8?', b"What 8?"))
    manifest = build_manifest(hybrid, tmp_path / "packs")
    tar.write_bytes(spoilt)
    of, met = loader(hybrid, tmp_path / "packs", []), set()
    for step in range(manifest.batches):
        batch = alone(of, step)
        for row, pack in zip(batch.rows, batch.packs, strict=True):
            cut = [image for entry in manifest[row].entries for image in entry.images]
            ends = list(accumulate(image.tiles for image in cut))
            assert pack.inline_tiles.tolist() == [end - 1 for end in ends]
            assert pack.context.tiles.tolist() == [k for k in range(sum(i.tiles for i in cut)) if k + 1 not in ends]
            assert len(pack.visual_index) == 4 * len(ends)  # tokens per tile
            tags = "".join(f"<tile_{k + 1}>" for image in cut for k in range(image.tiles - 1))
            assert MINI.show(pack.context.tag_ids.tolist()) == tags
        met |= set(batch.problems)
    assert len(met) == len(CUT | SPOILT)


def test_without_problems_they_meet_once(make_recipe: Callable[..., Path], tmp_path: Path) -> None:
    of = StageData.of(load_recipe(str(make_recipe())), "only")
    build_manifest(of, tmp_path / "packs")
    seats = [Seat(Grid(dp=2), member) for member in range(2)]
    parts, meetings = settled([loader(of, tmp_path / "packs", []) for _ in seats], 0, seats)
    assert meetings == 1 and not any(part.problems for part in parts)

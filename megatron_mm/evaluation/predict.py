"""Greedy exact match on a held-out set, for all items at once: no token is generated.

Teacher forcing feeds the expected answer and asks, at each of its positions, for the most likely next token. By
induction over positions, greedy decoding says exactly the expected answer, end marker included, if and only if each of
those is the token that stands there: as long as every earlier one agrees, both have seen the same prefix. So one
forward pass over packed sequences judges what would otherwise be a generation per item; the tests hold it against real
generation.
The tokens are those the template makes of the answer; the same text in other tokens counts as wrong, as it does in
training.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.pipeline_parallel import get_forward_backward_func
from torch import Tensor

from megavlm.platform.errors import InputError
from megavlm.platform.shards import ShardReader

from ..backend import device
from ..backend.context import own_positions
from ..config import DataConfig, ModelConfig
from ..contracts import PackedBatch
from ..data.as_torch import to_torch
from ..data.assemble import IGNORED, Prepared, assemble, grey
from ..data.conversation import Chat
from ..data.knapsack import best_fit
from ..data.measure import template
from ..data.tokenizer import TextTokenizer
from ..language import LanguageStage
from ..model import VisionLanguageModel
from ..tag_texts import TagTexts
from .items import Item, prepare_item, read_items
from .predictions import Prediction
from .vocabulary import parallel_argmax


@dataclasses.dataclass(frozen=True)
class Pack:
    """One packed sequence: the batch without labels, the labels int64 [s], the items in order, and the reasons of those
    that could not be decoded."""

    batch: PackedBatch
    labels: Tensor
    items: list[Item]
    problems: dict[str, str]


class Packer:
    """Turns items into packs of a suite's length; everything that does not depend on the weights."""

    def __init__(
        self, reader: ShardReader, chat: Chat, model: ModelConfig, tokenizer: TextTokenizer, sequence_length: int
    ) -> None:
        self._reader, self._chat, self._model = reader, chat, model
        self._padding, self.length = tokenizer.padding, sequence_length

    def plan(self, items: Sequence[Item]) -> tuple[list[list[Item]], list[Item]]:
        """Which items share a sequence, and those that are longer than one."""
        lengths = [len(item.encode(self._chat).tokens) for item in items]
        fits = [place for place, length in enumerate(lengths) if length <= self.length]
        bins = best_fit([lengths[place] for place in fits], self.length)
        long = [item for item, length in zip(items, lengths, strict=True) if length > self.length]
        return [[items[fits[k]] for k in group] for group in bins], long

    def pack(self, items: list[Item]) -> Pack:
        """Decode, tile and lay side by side."""
        problems: dict[str, str] = {}
        prepared = [self._prepare(item, problems) for item in items]
        side, has_context = self._model.tiling.side, self._chat.has_context
        arrays = assemble(prepared, self.length, side, self._padding, has_context)
        labels = torch.from_numpy(arrays.labels).to(device())
        # Without labels the model gives logits instead of losses.
        return Pack(dataclasses.replace(to_torch(arrays), labels=None).to(device()), labels, items, problems)

    def _prepare(self, item: Item, problems: dict[str, str]) -> Prepared:
        try:
            return prepare_item(self._reader, item, self._chat, self._model.tiling)
        except InputError as error:
            problems[item.id] = getattr(error, "reason", "unreadable")
            encoded = item.encode(self._chat)
            size = self._model.tiling.size
            tiles = [grey(image.tiles.tiles, size(image.tiles)) for image in item.images]
            return Prepared(
                encoded, tiles, 0.0, tuple(size(image.tiles) for image in item.images for _ in range(image.tiles.tiles))
            )


def evaluate_suite(
    model: VisionLanguageModel,
    tokenizer: TextTokenizer,
    reader: ShardReader,
    model_cfg: ModelConfig,
    data_cfg: DataConfig,
    *,
    sequence_length: int,
    shuffle_images: bool = False,
    alive: Callable[[], object] = lambda: None,
) -> list[Prediction]:
    """Judge every item of `reader`; every rank takes part and returns all predictions, in the set's order.

    `sequence_length` is that of the packs; it must divide by tp under sequence parallelism. `shuffle_images` is the
    blind control. Items that cannot be shown (unreadable, or longer than a pack) count as wrong, with their reason.
    `alive` is called before every pack.
    Raises InputError for an empty set or ids given twice.
    """
    items, judged = read_items(reader, model_cfg.tiling, shuffle_images=shuffle_images)
    packer = Packer(reader, template(model_cfg, tokenizer, data_cfg.template), model_cfg, tokenizer, sequence_length)
    groups, too_long = packer.plan(items)
    judged += [item.failed("too_long") for item in too_long]
    rank, ranks = parallel_state.get_data_parallel_rank(), parallel_state.get_data_parallel_world_size()
    mine = _predict(model, packer, groups[rank::ranks], tokenizer, alive)
    found = {item.id: item for item in [*judged, *_gathered(mine)]}
    if not found:
        raise InputError("the held-out set has no items", where=reader.url, fix="name a set with samples in it")
    return [found[name] for name in _order(items, judged, found)]


def _order(items: Sequence[Item], judged: Sequence[Prediction], found: dict[str, Prediction]) -> list[str]:
    """Items in the set's order, then those that could not be read."""
    names = [item.id for item in items]
    return [*names, *(item.id for item in judged if item.id not in set(names))]


def _predict(
    model: VisionLanguageModel,
    packer: Packer,
    groups: list[list[Item]],
    tokenizer: TextTokenizer,
    alive: Callable[[], object],
) -> list[Prediction]:
    """Predictions of this replica's packs, through megatron-core's schedule; [] before the last pipeline stage."""
    if not groups:
        return []

    def step(packs: Iterator[Pack], stage: LanguageStage) -> tuple[Tensor, object]:
        alive()
        pack = next(packs)
        targets = pack.labels != IGNORED  # [s], the whole pack's

        def collect(logits: Tensor, non_loss_data: bool = True) -> list[Prediction]:
            return list(_compare(pack, _said(logits, targets)[targets].tolist(), tokenizer))

        return stage(model.see(pack.batch)), collect

    stages = parallel_state.get_pipeline_model_parallel_world_size()
    if len(model.stages) > 1:  # an interleaved pipeline wants as many packs at a time as it has stages
        groups = [*groups, *[[]] * (-len(groups) % stages)]
    packs: Iterable[Pack] = (packer.pack(group) for group in groups)  # decoded one by one
    if model.spec.injection.has_context and stages > 1:  # what stages tell each other can't be told inside the schedule
        packs = _with_tags(model, list(packs))
    feeds = itertools.tee(packs, len(model.stages))
    with evaluating(model):
        judged = get_forward_backward_func()(
            forward_step_func=step,
            data_iterator=list(feeds) if len(feeds) > 1 else feeds[0],
            model=list(model.stages),
            num_microbatches=len(groups),
            seq_length=packer.length,
            micro_batch_size=1,
            forward_only=True,
            collect_non_loss_data=True,
        )
    return [item for pack in judged for item in pack]


def _with_tags(model: VisionLanguageModel, packs: list[Pack]) -> list[Pack]:
    """The packs with their tags' embeddings: all at once, so all are decoded first."""
    with torch.no_grad():
        given = TagTexts(model).give([pack.batch for pack in packs])
    return [dataclasses.replace(pack, batch=batch) for pack, batch in zip(packs, given, strict=True)]


def _said(logits: Tensor, targets: Tensor) -> Tensor:
    """The most likely token at each of `targets` bool [s], int64 [s], put together from what each rank holds of s."""
    own = own_positions(len(targets)).to(targets.device)
    here = targets[own]
    said = torch.zeros(len(targets), dtype=torch.int64, device=targets.device)
    said[own[here]] = parallel_argmax(logits[0, here])
    dist.all_reduce(said, group=parallel_state.get_context_parallel_group())
    return said


def _compare(pack: Pack, said: list[int], tokenizer: TextTokenizer) -> Iterator[Prediction]:
    """Cut the pack's targets at its segments' borders and judge each item."""
    places = (pack.labels != IGNORED).nonzero()[:, 0]
    wanted = pack.labels[places].tolist()
    borders = torch.searchsorted(places, pack.batch.cu_seqlens.to(places.dtype)).tolist()
    for place, item in enumerate(pack.items):
        span = slice(borders[place], borders[place + 1])
        if item.id in pack.problems:
            yield item.failed(pack.problems[item.id])
        else:
            yield judge(item, said[span], wanted[span], tokenizer)


def judge(item: Item, said: list[int], wanted: list[int], tokenizer: TextTokenizer) -> Prediction:
    """Compare the tokens said with those wanted (both int [n], the end marker last).

    A wrong `answer` is told up to its first wrong token, with "..." unless that ends it: what greedy decoding would say
    after it is not known.
    """
    wrong = next((k for k, (a, b) in enumerate(zip(said, wanted, strict=True)) if a != b), None)
    if wrong is None:
        return Prediction(item.id, item.kind, True, item.expected, item.expected)
    heard = said[: wrong + 1]
    more = "" if heard[-1] == wanted[-1] else "..."
    return Prediction(item.id, item.kind, False, tokenizer.decode(heard) + more, item.expected)


@contextlib.contextmanager
def evaluating(model: torch.nn.Module) -> Iterator[None]:
    """No gradients and no dropout inside; the model's mode is put back afterwards."""
    before = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(before)


def _gathered(mine: list[Prediction]) -> list[Prediction]:
    """Everybody's predictions, on every rank; tensor- and context-parallel ranks hold the same, so one speaks."""
    speaks = parallel_state.get_tensor_model_parallel_rank() + parallel_state.get_context_parallel_rank() == 0
    parts: list[list[Prediction]] = [[] for _ in range(dist.get_world_size())]
    dist.all_gather_object(parts, mine if speaks else [])
    return [item for part in parts for item in part]

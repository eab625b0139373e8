"""A published point as a job: a dense decoder's parts, from the decoders' own costs. Loads no torch.

Where its source fuses what our layers on plain torch do in several operations, less is moved.
"""

from __future__ import annotations

import dataclasses

from ..costs import Cost, MicroBatch, Setting
from ..decoders.llama import Llama
from ..transformer_costs import LayerShape, layer_cost, own_rows
from .contracts import Job, Load, Pieces
from .hardware import find_gpu
from .points import Point

SIZE = 2
LOGIT_BYTES = 10  # of a logit in the loss' forward pass: written and read in bf16, written in float32, read for the sum
UNFUSED = 13  # bytes of a score without FlashAttention: written, softmax, dropout with its mask, read


def job_of(point: Point) -> Job:
    """The job that a published point was."""
    rows = point.micro * point.sequence
    micro = MicroBatch(positions=rows, samples=point.micro, squares=point.micro * point.sequence**2)
    return Job(
        stage=point.name,
        gpu=find_gpu(point.gpu),
        world=point.gpus,
        parallel=point.parallel,
        dp=point.dp,
        micro_batches=point.batch // (point.dp * point.micro),
        precision=point.precision,
        recompute=point.recompute,
        train=tuple(point.train),
        load=Load(
            packs=point.batch // point.micro,
            samples=point.batch,
            of=micro,
            most=micro,
            tokens=float(point.batch * point.sequence),
            origin="published",
        ),
        pieces=pieces(point, micro),
        fsdp=point.fsdp,
        tp_overlap=point.tp_overlap,
        attention=point.attention,
    )


def pieces(point: Point, micro: MicroBatch) -> Pieces:
    """The decoder's parts; all runs with tensor parallelism split the sequence too."""
    dense, tp = point.shape, point.parallel.tp
    setting = Setting(tp=tp, cp=point.parallel.cp, sequence_parallel=tp > 1, size=SIZE)
    sizes = {name: getattr(dense, name) for name in ("layers", "hidden", "heads", "kv_heads", "ffn", "vocab")}
    decoder = Llama(**sizes, max_positions=point.sequence, rope_base=1e4, norm_eps=1e-5)
    embedding, _, head = decoder.costs(micro, setting)
    if point.fused:
        rows = micro.positions / setting.cp / tp
        head = dataclasses.replace(head, moved=rows * (dense.vocab * LOGIT_BYTES + 2 * dense.hidden * SIZE))
    return Pieces(
        tower=(),
        embedding=embedding,
        layers=dense.layers * (_layer(point, micro, setting),),
        head=head,
        hidden=own_rows(micro.positions, setting) * dense.hidden * SIZE,
    )


def _layer(point: Point, micro: MicroBatch, setting: Setting) -> Cost:
    dense = point.shape
    shape = LayerShape(
        hidden=dense.hidden,
        heads=dense.heads,
        kv_heads=dense.kv_heads,
        head_dim=dense.hidden // dense.heads,
        ffn=dense.ffn,
        gated=dense.gated,
        causal=True,
    )
    cost = layer_cost(shape, micro.positions, micro.squares, setting)
    if point.fused:
        cost = dataclasses.replace(cost, moved=_fused(shape, micro, setting))
    if point.recompute == "every_other":
        cost = dataclasses.replace(cost, kept=_every_other(shape, micro, setting))
    if point.flash:
        return cost
    scores = shape.heads * micro.squares / setting.tp / setting.cp
    return dataclasses.replace(cost, mixing=2 * cost.mixing, moved=cost.moved + UNFUSED * scores)


def _fused(shape: LayerShape, micro: MicroBatch, setting: Setting) -> float:
    """Bytes where one operation each does a norm, a residual, the angles, the gate: each reads and writes once."""
    hidden = 2 * (2 + 3) * shape.hidden
    inside = 2 * (shape.queries + shape.keys) + shape.entered + shape.ffn
    return SIZE * micro.positions / setting.cp / setting.tp * (hidden + inside)


def _every_other(shape: LayerShape, micro: MicroBatch, setting: Setting) -> float:
    """Kept by torchtitan's selective recomputation: the layer's input, queries, values, what attention makes, and the
    first and the last product of the MLP."""
    width = 2 * shape.hidden + 2 * shape.queries + shape.keys + shape.ffn
    return SIZE * micro.positions / setting.cp / setting.tp * width

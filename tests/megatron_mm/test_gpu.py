"""What a GPU is for, each test written once and run where it can be: on the CPU, and (marker `gpu`) on a CUDA device.

Only Transformer Engine's own arithmetic has no twin: on the CPU the same test shows that FP8 is refused there.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from megatron.core import parallel_state
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from megavlm.megatron_mm import backend
from megavlm.megatron_mm.backend.attention import SDPAttention
from megavlm.megatron_mm.backend.context import pieces
from megavlm.megatron_mm.backend.fp8 import RECIPES
from megavlm.megatron_mm.backend.specs import has_transformer_engine, modules
from megavlm.megatron_mm.backend.te_attention import EngineAttention
from megavlm.megatron_mm.config import ModelConfig, Optimizer, Parallel
from megavlm.megatron_mm.contracts import BuildContext, PackedBatch
from megavlm.megatron_mm.model import build_model
from megavlm.megatron_mm.training import step as training
from megavlm.megatron_mm.training import wrapping
from megavlm.platform.errors import ConfigError

CUDA = torch.cuda.is_available()
# A process with a GPU can't stand back from it: megatron-core takes it for granted.
WHERE = [
    pytest.param("cpu", marks=pytest.mark.skipif(CUDA, reason="there is a GPU; hide it with CUDA_VISIBLE_DEVICES=")),
    pytest.param("cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(not CUDA, reason="needs a CUDA device")]),
]
on_both = pytest.mark.parametrize("where", WHERE)
# FP8 wants widths and rows in multiples of 16, and of 128 where it scales by blocks.
WIDE = {"encoder": {"hidden": 128, "ffn": 256}, "decoder": {"hidden": 128, "ffn": 256}}
LENGTHS = (40, 63, 25)
TOLERANCE = {"fp32": 1e-4, "bf16": 2e-2, **dict.fromkeys(RECIPES, 1e-1)}


@torch.no_grad()
def written_out(model: torch.nn.Module, pack: PackedBatch) -> float:
    """The loss of one pack from whole logits, in float32."""
    logits = model(pack.to(backend.device()), gather_logits=True)[0].float()
    weight = pack.loss_weights[0].to(logits.device)
    losses = F.cross_entropy(logits, pack.labels[0].to(logits.device), reduction="none")
    return float((losses * weight).sum() / weight.sum())


@on_both
@pytest.mark.parametrize("precision", list(TOLERANCE))
def test_training_steps(
    one_process: BuildContext,
    tiny_model: Callable[..., ModelConfig],
    tiny_pack: Callable[..., PackedBatch],
    precision: str,
    where: str,
) -> None:
    """The first loss is that of float32 written out; twenty updates on two packs bring it down."""
    assert backend.device().type == where
    config, packs = tiny_model(**WIDE), [tiny_pack(1, lengths=LENGTHS), tiny_pack(2, lengths=LENGTHS, tiles=0)]
    plain = build_model(config, one_process)
    backend.initialise(plain, seed=4)
    wanted = written_out(plain.to(backend.device()), packs[0])
    ctx = backend.build_context(Parallel(), precision)
    if precision in RECIPES and not has_transformer_engine():
        with pytest.raises(ConfigError, match="FP8 needs Transformer Engine"):
            build_model(config, ctx)
        return
    model = build_model(config, ctx)
    backend.initialise(model, seed=4)
    wrapped = wrapping.wrap(model, precision)
    optimizer = wrapping.make_optimizer(wrapped, Optimizer(lr=3e-3), precision)
    objective = config.objectives[0].build()
    first = training.train_step(wrapped, optimizer, training.cut([packs[:1]], wrapped), objective)
    assert first.loss == pytest.approx(wanted, rel=TOLERANCE[precision])
    batch = training.cut([packs], wrapped)
    losses = [training.train_step(wrapped, optimizer, batch, objective).loss for _ in range(20)]
    assert losses[-1] < 0.8 * losses[0]


HEADS, GROUPS, WIDTH = 4, 2, 64
ENDS = (0, 3, 4, 100, 219, 256)  # the last segment is a pack's padding tail


def drawn(dtype: torch.dtype, device: str, grad: bool = False) -> list[Tensor]:
    """Query, key and value of a packed sequence."""
    draw = torch.Generator().manual_seed(3)
    tensors = (torch.randn(ENDS[-1], heads, WIDTH, generator=draw) for heads in (HEADS, GROUPS, GROUPS))
    return [t.to(device, dtype).requires_grad_(grad) for t in tensors]


def exact(query: Tensor, key: Tensor, value: Tensor, causal: bool) -> Tensor:
    """softmax(q k^T / sqrt(d)) v over each segment by itself, in float64."""
    q, k, v = (t.double().transpose(0, 1) for t in (query, key, value))
    k, v = (t.repeat_interleave(HEADS // GROUPS, 0) for t in (k, v))
    segment = torch.bucketize(
        torch.arange(ENDS[-1], device=q.device), torch.tensor(ENDS[1:], device=q.device), right=True
    )
    seen = segment[:, None] == segment[None]
    scores = q @ k.transpose(1, 2) / math.sqrt(WIDTH)
    scores = scores.masked_fill(~(seen.tril() if causal else seen), -math.inf)
    return (scores.softmax(-1) @ v).transpose(0, 1)


def segments(device: str) -> PackedSeqParams:
    ends = torch.tensor(ENDS, dtype=torch.int32, device=device)
    whole = torch.tensor([0, ENDS[-1]], dtype=torch.int32)
    longest = int(ends.diff().max())
    return PackedSeqParams("thd", ends, ends, whole, whole, longest, longest)


def core(kind: type, dtype: torch.dtype, causal: bool = True, cp: int = 1) -> SDPAttention:
    config = TransformerConfig(
        num_layers=1,
        hidden_size=HEADS * WIDTH,
        num_attention_heads=HEADS,
        num_query_groups=GROUPS,
        attention_dropout=0.0,
        params_dtype=dtype,
        bf16=dtype == torch.bfloat16,
        context_parallel_size=cp,
    )
    return kind(config, 1, AttnMaskType.causal if causal else AttnMaskType.no_mask, "self")


@on_both
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_packed_attention_and_its_gradients(
    one_process: BuildContext, dtype: torch.dtype, causal: bool, where: str
) -> None:
    """Our core, and Transformer Engine's where there is one, against the formula: segments of one and of many tokens,
    grouped queries, a padding tail."""
    tolerance = 1e-4 if dtype == torch.float32 else 3e-2
    truth = drawn(torch.float64, where, grad=True)
    rounded = drawn(dtype, where)
    for t, r in zip(truth, rounded, strict=True):
        t.data.copy_(r)
    wanted = exact(*truth, causal)
    push = torch.randn(wanted.shape, generator=torch.Generator().manual_seed(5)).to(where)
    wanted.backward(push.double())
    kinds = {SDPAttention, modules(dtype).core_attention}
    assert (EngineAttention in kinds) == (has_transformer_engine() and dtype != torch.float32)
    for kind in kinds:
        tensors = drawn(dtype, where, grad=True)
        attention = core(kind, dtype, causal).to(where)
        out = attention(*tensors, None, packed_seq_params=segments(where))
        out.backward(push.to(dtype))
        for found, sought in zip((out, *(t.grad for t in tensors)), (wanted, *(t.grad for t in truth)), strict=True):
            torch.testing.assert_close(found.double(), sought, rtol=tolerance, atol=tolerance)


@on_both
@pytest.mark.parametrize("cp", [2, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_context_parallel_ranks_compute(
    one_process: BuildContext, dtype: torch.dtype, cp: int, where: str
) -> None:
    """Each rank's queries against the gathered keys: put together, the whole pack's attention."""
    query, key, value = drawn(dtype, where)
    ends = segments(where).cu_seqlens_q
    wanted = exact(query, key, value, causal=True)
    attention = core(SDPAttention, dtype)
    found = torch.full_like(query, math.nan)
    for rank in range(cp):
        runs = pieces(ENDS[-1], cp, rank)
        held = torch.tensor([position for run in runs for position in run], device=where)
        found[held] = attention.attend_runs(query[held], key, value, ends, runs)
    tolerance = 1e-4 if dtype == torch.float32 else 3e-2
    torch.testing.assert_close(found.double(), wanted, rtol=tolerance, atol=tolerance)


@on_both
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_collectives(one_process: BuildContext, dtype: torch.dtype, where: str) -> None:
    """Every collective that a step calls, over NCCL or gloo; with one process each is the identity."""
    assert dist.get_backend() == backend.backend_name() == ("nccl" if where == "cuda" else "gloo")
    group = parallel_state.get_data_parallel_group(with_context_parallel=True)
    sent = torch.arange(12.0, device=where, dtype=dtype).view(4, 3)
    summed, gathered, reduced, exchanged = (sent.clone() for _ in range(4))
    dist.all_reduce(summed, group=group)
    dist.all_gather_into_tensor(gathered.zero_(), sent, group=group)
    dist.reduce_scatter_tensor(reduced.zero_(), sent.clone(), group=group)
    dist.all_to_all_single(exchanged.zero_(), sent, [4], [4], group=group)
    listed = [torch.zeros_like(sent)]
    dist.all_gather(listed, sent, group=group)
    dist.broadcast(summed, 0, group=group)
    assert all(torch.equal(found, sent) for found in (summed, gathered, reduced, exchanged, *listed))

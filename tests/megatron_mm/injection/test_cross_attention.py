"""Gated cross-attention: who sees what, against statements of the rule, the backbone, and double precision."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import nvlm_worker as worker
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from megavlm.megatron_mm import backend
from megavlm.megatron_mm.config import ModelConfig, Parallel
from megavlm.megatron_mm.contracts import BuildContext, Context, PackedBatch
from megavlm.megatron_mm.data.amounts import Amounts
from megavlm.megatron_mm.decoders.qwen2 import Qwen2
from megavlm.megatron_mm.injection.cross_attention import CrossAttention
from megavlm.megatron_mm.injection.hybrid import Hybrid
from megavlm.megatron_mm.injection.sight import SampleSight, sight
from megavlm.megatron_mm.model import VisionLanguageModel, build_model
from megavlm.megatron_mm.training.flops import step_flops
from megavlm.platform.errors import ConfigError
from megavlm.platform.images import ImageTiles, places

QWEN_72B = Qwen2(layers=80, hidden=8192, heads=64, kv_heads=8, ffn=29568, vocab=152064)
YI_34B = Qwen2(layers=60, hidden=7168, heads=56, kv_heads=8, ffn=20480, vocab=64000)
X = {"name": "cross_attention", "every": 2}
H = {"name": "hybrid", "every": 2}


def built(one_process: BuildContext, injection: dict[str, Any]) -> VisionLanguageModel:
    model = build_model(worker.model_config(injection), one_process)
    backend.initialise(model, seed=3)
    return model


def seen_pack(model: VisionLanguageModel, pack: PackedBatch) -> PackedBatch:
    """The pack with visual tokens that want a gradient."""
    pack = replace(model.see(pack), labels=None)
    return replace(pack, visual=pack.visual.detach().requires_grad_())


# --- the backbone ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"gate": "linear"}, {"where": "before"}, {"ffn": True}])
def test_with_gates_at_0_the_logits_are_the_text_backbones_to_the_bit(one_process: BuildContext, options: dict) -> None:
    gated = built(one_process, {**X, **options, "gate_init": 0.0})
    backbone = built(one_process, {"name": "inline", "tags": "none"})
    weights = gated.stages[0].decoder.state_dict()
    backbone.stages[0].decoder.load_state_dict({k: v for k, v in weights.items() if ".cross." not in k})
    pack = replace(worker.pack(0, hybrid=False), labels=None)
    text = replace(pack, tiles=pack.tiles[:0], context=None, inline_tiles=None)
    assert torch.equal(gated(pack), backbone(text))
    open_gates = built(one_process, {**X, **options, "gate_init": 0.5})
    open_gates.stages[0].decoder.load_state_dict({k: v for k, v in weights.items() if "gate" not in k}, strict=False)
    assert not torch.allclose(open_gates(pack), backbone(text), atol=1e-3)


# --- who sees what --------------------------------------------------------------------------------------------------


def tag_positions(pack: PackedBatch, tile: int) -> list[int]:
    return torch.nonzero(pack.context.tags[0] == tile)[:, 0].tolist()


def outputs(model: VisionLanguageModel, pack: PackedBatch, names: str) -> list[Tensor]:
    """What modules of a name put out, layer by layer."""
    found: list[Tensor] = []
    hooks = [
        module.register_forward_hook(
            lambda module, inputs, out: found.append(out[0] if isinstance(out, tuple) else out)
        )
        for name, module in model.stages[0].decoder.named_modules()
        if name.endswith(names)
    ]
    model(pack)
    for hook in hooks:
        hook.remove()
    return found


def test_a_tag_sees_its_own_tile_and_nothing_is_seen_before_its_tag(one_process: BuildContext) -> None:
    model = built(one_process, X)
    pack = seen_pack(model, worker.pack(0, hybrid=False))
    first = outputs(model, pack, ".cross")[0]
    layers = outputs(model, pack, "layers.0") + outputs(model, pack, "layers.1") + outputs(model, pack, "layers.3")
    for tile in range(3):
        changed = pack.visual.detach().clone().view(-1, worker.EACH, 32)
        changed[tile] += 1.0
        other = replace(pack, visual=changed.flatten(0, 1))
        now = outputs(model, other, ".cross")[0]
        for j in range(3):
            same = torch.equal(now[tag_positions(pack, j)], first[tag_positions(pack, j)])
            assert same == (j != tile), (j, tile)
        began = tag_positions(pack, tile)[0]
        moved = (
            outputs(model, other, "layers.0") + outputs(model, other, "layers.1") + outputs(model, other, "layers.3")
        )
        assert all(torch.equal(a[:began], b[:began]) for a, b in zip(layers, moved, strict=True))
        assert torch.equal(layers[-1][17:], moved[-1][17:])  # the other samples of the pack
        assert not torch.equal(layers[-1][began:17], moved[-1][began:17])


def test_with_self_attention_held_fixed_a_tags_output_depends_on_its_own_tile_alone(one_process: BuildContext) -> None:
    """Over the whole model: what self-attention puts out is frozen, so that nothing passes between positions but it."""
    model = built(one_process, X)
    pack = seen_pack(model, worker.pack(0, hybrid=False))
    for layer in model.stages[0].decoder.layers:
        layer.self_attention.register_forward_hook(lambda module, inputs, out: (out[0].detach(), out[1]))
    logits = model(pack)[0]
    for j in range(3):
        grad = torch.autograd.grad(logits[tag_positions(pack, j)].sum(), pack.visual, retain_graph=True)[0]
        per_tile = grad.view(-1, worker.EACH, 32).abs().amax((1, 2))
        assert per_tile[j] > 0 and (per_tile[[k for k in range(len(per_tile)) if k != j]] == 0).all()
    after = torch.autograd.grad(logits[16].sum(), pack.visual)[0].view(-1, worker.EACH, 32).abs().amax((1, 2))
    assert (after[:3] > 0).all() and (after[3:] == 0).all()  # text behind the tags sees every tile of its sample


@given(st.data())
def test_sight_is_the_rule_position_by_position(data: st.DataObject) -> None:
    lengths = data.draw(st.lists(st.integers(1, 9), min_size=1, max_size=4))
    ends = torch.tensor([0, *lengths]).cumsum(0).tolist()
    tiles = []  # (since, until, width)
    tags = torch.full((1, ends[-1]), -1)
    for start, end in zip(ends, ends[1:], strict=False):
        for since in sorted(data.draw(st.lists(st.integers(start, end - 1), max_size=3))):
            tiles.append((since, end, data.draw(st.integers(1, 3))))
            if data.draw(st.booleans()):
                tags[0, since] = len(tiles) - 1
    if not tiles:
        return
    columns = torch.tensor(tiles).T
    none = torch.zeros(0, dtype=torch.int64)
    context = Context(torch.arange(len(tiles)), columns[0], columns[1], tags, none, none)
    held = torch.tensor(sorted(data.draw(st.sets(st.integers(0, ends[-1] - 1), min_size=1))))
    ours = torch.zeros(len(held), int(columns[2].sum()), dtype=torch.bool)
    for rows, keys, seen in sight(context, columns[2], held):
        ours[rows[:, None], torch.arange(keys.start, keys.stop)] = seen
    wanted = [
        [
            since <= p < until and tags[0, p] in (-1, j)
            for j, (since, until, width) in enumerate(tiles)
            for _ in range(width)
        ]
        for p in held.tolist()
    ]
    assert ours.tolist() == wanted


# --- the layer ------------------------------------------------------------------------------------------------------


def by_hand(cross: Any, hidden: Tensor, context: Tensor, seen: list[list[bool]], heads: int, groups: int) -> Tensor:
    """h + tanh(g) W_o softmax(q k / sqrt d) v, head by head and row by row; rows that see nothing stay as they are."""
    state = {name: tensor.double() for name, tensor in cross.named_parameters()}
    x, c = hidden.double(), context.double()
    normed = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * state["norm.weight"]
    dim = x.shape[-1] // heads
    q = (normed @ state["attention.linear_q.weight"].T).view(len(x), heads, dim)
    kv = (c @ state["attention.linear_kv.weight"].T).view(len(c), groups, 2, dim)
    out = torch.zeros_like(q)
    for row, columns in enumerate(seen):
        visible = [k for k, see in enumerate(columns) if see]
        for head in range(heads if visible else 0):
            keys, values = kv[visible, head // (heads // groups)].unbind(1)
            weights = torch.softmax(keys @ q[row, head] / dim**0.5, 0)
            out[row, head] = weights @ values
    return x + torch.tanh(state["gate.weight"]) * (out.flatten(1) @ state["attention.linear_proj.weight"].T)


def one_sample(rows: int, keys: int) -> tuple[list[SampleSight], list[list[bool]]]:
    """All but the first two rows see the context, the third only its first two keys; and the same written out."""
    seen = torch.ones(rows - 2, keys, dtype=torch.bool)
    seen[0, 2:] = False
    return [SampleSight(torch.arange(2, rows), slice(0, keys), seen)], [[False] * keys] * 2 + seen.tolist()


def test_the_layer_is_the_formula(one_process: BuildContext) -> None:
    cross = built(one_process, X).stages[0].decoder.layers[1].cross
    draw = torch.Generator().manual_seed(0)
    hidden, context = torch.randn(6, 32, generator=draw), torch.randn(5, 32, generator=draw)
    looks, seen = one_sample(6, 5)
    ours = cross(hidden[:, None], context[:, None], looks, None)[:, 0]
    assert torch.allclose(ours.double(), by_hand(cross, hidden, context, seen, heads=4, groups=2), atol=1e-6)
    assert torch.equal(ours[:2], hidden[:2])


@pytest.mark.parametrize("options", [{}, {"gate_size": "channel", "ffn": True}, {"gate": "linear", "kv_heads": 1}])
def test_directional_derivatives_in_double_precision(options: dict[str, Any]) -> None:
    backend.init_distributed(Parallel(), seed=1)
    ctx = replace(backend.build_context(Parallel()), params_dtype=torch.float64)
    cross = built(ctx, {**X, **options}).stages[0].decoder.layers[1].cross
    draw = torch.Generator().manual_seed(1)
    looks, _ = one_sample(6, 5)
    inputs = [torch.randn(n, 1, 32, generator=draw, dtype=torch.float64) for n in (6, 5)]
    places = [*(x.requires_grad_() for x in inputs), *cross.parameters()]
    ways = [torch.randn(p.shape, generator=draw, dtype=torch.float64) for p in places]
    to = torch.randn(6, 1, 32, generator=draw, dtype=torch.float64)

    def moved(step: float) -> float:
        with torch.no_grad():
            for place, way in zip(places, ways, strict=True):
                place.add_(step * way)
            value = (cross(*inputs, looks, None) * to).sum().item()
            for place, way in zip(places, ways, strict=True):
                place.sub_(step * way)
        return value

    grads = torch.autograd.grad((cross(*inputs, looks, None) * to).sum(), places)
    analytic = sum((grad * way).sum().item() for grad, way in zip(grads, ways, strict=True))
    numeric = (moved(1e-5) - moved(-1e-5)) / 2e-5
    assert analytic == pytest.approx(numeric, rel=1e-6)
    backend.shutdown()


def test_what_is_packed_together_never_meets(one_process: BuildContext) -> None:
    for injection in (X, {**H, "ffn": True}):
        model = built(one_process, injection)
        whole = worker.pack(0, hybrid=injection["name"] == "hybrid", lengths=(17, 23, 8))
        logits = model(replace(whole, labels=None))[0]
        changed = replace(whole, labels=None, tiles=torch.cat([whole.tiles[:3], 255 - whole.tiles[3:]]))
        other = model(changed)[0]
        assert torch.equal(logits[:17], other[:17]) and torch.equal(logits[40:], other[40:])
        assert not torch.allclose(logits[17:40], other[17:40])


# --- sizes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("decoder", "every", "options", "billions"),
    [  # shared/published arithmetic: ten layers without their own feed-forward, grouped and with all heads; and with it
        (QWEN_72B, 8, {}, 1.51),
        (QWEN_72B, 8, {"kv_heads": 64}, 2.68),
        (YI_34B, 6, {}, 1.17),
        (YI_34B, 6, {"kv_heads": 56}, 2.06),
        (QWEN_72B, 8, {"kv_heads": 64, "ffn": True}, 2.68 + 7.27),
        (YI_34B, 6, {"kv_heads": 56, "ffn": True}, 2.06 + 4.40),
    ],
)
def test_full_size_counts(decoder: Qwen2, every: int, options: dict[str, Any], billions: float) -> None:
    spec = CrossAttention(every=every, **options)
    assert spec.count(decoder) == 10
    assert spec.parameters(decoder) / 1e9 == pytest.approx(billions, abs=0.01)


@pytest.mark.parametrize("options", [{}, {"ffn": True, "gate_size": "channel"}, {"kv_heads": 4, "gate": "none"}])
def test_counted_is_what_is_built(one_process: BuildContext, options: dict[str, Any]) -> None:
    config: ModelConfig = worker.model_config({**X, **options})
    model = build_model(config, one_process)
    assert config.parameter_counts()["injection"] == sum(p.numel() for _, p in model.axis("injection"))
    assert config.parameter_counts()["decoder"] == sum(p.numel() for _, p in model.axis("decoder"))


def test_freezing_tells_the_injections_weights_from_the_decoders(one_process: BuildContext) -> None:
    model = built(one_process, X)
    model.freeze(["injection"])
    learning = {name for name, p in model.stages[0].named_parameters() if p.requires_grad}
    assert learning and all(".cross." in name for name in learning)
    model.freeze(["decoder"])
    assert not any(".cross." in name for name, p in model.stages[0].named_parameters() if p.requires_grad)


@pytest.mark.parametrize(
    ("options", "parallel", "where"),
    [
        ({"every": 9}, {}, "every"),
        ({"every": 2, "kv_heads": 3}, {}, "kv_heads"),
        ({"every": 2}, {"tp": 4}, "parallel.tp"),
    ],
)
def test_what_cannot_be_is_refused(options: dict[str, Any], parallel: dict[str, int], where: str) -> None:
    decoder = Qwen2(layers=4, hidden=32, heads=4, kv_heads=2, ffn=48, vocab=96)
    with pytest.raises(ConfigError) as refused:
        CrossAttention(**options).check(Parallel(**parallel), decoder)
    assert where in str(refused.value.where)
    assert refused.value.fix


def test_where_tiles_go() -> None:
    image = ImageTiles(tiles=3, columns=2, rows=1)
    x = [CrossAttention(every=2).placement(place) for place in places(image, thumbnail=True)]
    assert [(p.tag, p.tag_inline, p.inline) for p in x] == [
        ("<tile_1>", True, False),
        ("<tile_2>", True, False),
        ("<tile_global_thumbnail>", True, False),
    ]
    h = [Hybrid(every=2).placement(place) for place in places(image, thumbnail=True)]
    assert [(p.tag, p.tag_inline, p.inline) for p in h] == [
        ("<tile_1>", False, False),
        ("<tile_2>", False, False),
        ("<tile_global_thumbnail>", True, True),
    ]


@pytest.mark.parametrize("injection", [X, {**X, "ffn": True, "kv_heads": 1}, H])
def test_products_with_weights_are_those_that_torch_counts(
    one_process: BuildContext, injection: dict[str, Any]
) -> None:
    model = built(one_process, injection)
    pack = model.see(worker.pack(0, hybrid=injection["name"] == "hybrid", lengths=(17, 0)))
    plain = replace(pack, context=None)
    counts = []
    for each in (replace(pack, labels=None), replace(plain, labels=None)):
        with FlopCounterMode(display=False) as counter:
            model(each)
        found = counter.get_flop_counts()["Global"]
        counts.append(sum(n for op, n in found.items() if str(op) in {"aten.mm", "aten.addmm"}))
    tags = len(pack.context.tag_ids)
    context = len(pack.context.tiles) * worker.EACH + tags
    ours = model.spec.injection.flops(17, context, 0, model.spec.decoder)
    assert ours.weights == counts[0] - counts[1] > 0


def test_the_steps_flops_count_contexts_and_pairs() -> None:
    config = worker.model_config(X)
    some = {"batch": 0, "first_row": 0, "packs": 1, "samples": 1, "positions": 48, "tokens": 17, "squares": 289}
    seeing = {"seeing_tokens": 17, "seeing_squares": 289, "tiles": 3, "context_tiles": 3, "pairs": 51}
    plain = step_flops(config, ["decoder"], Amounts(**some, **seeing | {"context_tiles": 0, "pairs": 0}))
    cross = config.injection.flops(0, 12, 204, config.decoder)
    more = step_flops(config, ["decoder"], Amounts(**some, **seeing)) - plain
    assert more == cross.forward + cross.backward(trained=False, passes=True)
    both = step_flops(config, ["decoder", "injection"], Amounts(**some, **seeing))
    assert both - plain - more == config.injection.flops(17, 12, 0, config.decoder).weights

"""FLOPs against torch's own counter where both count the same, and against published figures."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import varied_layouts_worker as varied
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from megavlm.megatron_mm import backend
from megavlm.megatron_mm.config import ModelConfig
from megavlm.megatron_mm.connectors.segments import BLOCK
from megavlm.megatron_mm.contracts import BuildContext, PackedBatch
from megavlm.megatron_mm.data.amounts import Amounts, amounts
from megavlm.megatron_mm.data.manifest import Entry, Pack
from megavlm.megatron_mm.decoders.qwen2 import Qwen2
from megavlm.megatron_mm.flops import Flops
from megavlm.megatron_mm.model import VisionLanguageModel, build_model
from megavlm.megatron_mm.tiles import VariedTiles
from megavlm.megatron_mm.training.flops import peak_tflops, step_flops, visual_tokens

LENGTHS, TILES = (17, 23, 8), 3


def of(lengths: tuple[int, ...], tiles: int, seeing: tuple[int, ...]) -> Amounts:
    squares = [sum(n**2 for n in some) for some in (lengths, seeing)]
    counts = {"tokens": sum(lengths), "squares": squares[0], "seeing_tokens": sum(seeing), "seeing_squares": squares[1]}
    return Amounts(batch=0, first_row=0, packs=1, samples=len(lengths), positions=sum(lengths), tiles=tiles, **counts)


def counted(model: VisionLanguageModel, pack: PackedBatch) -> tuple[dict[str, int], dict[str, int]]:
    """Operations of products with weights, and of attention's, forward and backward, as torch counts them."""
    with FlopCounterMode(display=False) as counter:
        model(pack).sum().backward()
    found = counter.get_flop_counts()["Global"]
    weights = {"aten.mm", "aten.addmm"}
    return (
        {str(op): n for op, n in found.items() if str(op) in weights},
        {str(op): n for op, n in found.items() if str(op) not in weights},
    )


@pytest.mark.parametrize(
    "train", [["encoder", "connector", "decoder"], ["connector"], ["encoder", "connector"], ["decoder"], ["encoder"]]
)
def test_products_with_weights_are_those_that_torch_counts(
    one_process: BuildContext,
    tiny_model: Callable[..., ModelConfig],
    tiny_pack: Callable[..., PackedBatch],
    train: list[str],
) -> None:
    config = tiny_model()
    model = build_model(config, one_process)
    backend.initialise(model, seed=1)
    model.freeze(train)
    weights, _ = counted(model, tiny_pack(0, LENGTHS, TILES))
    step = step_flops(config, train, of(LENGTHS, TILES, seeing=LENGTHS))
    mixing = config.decoder.flops(0, sum(n**2 for n in LENGTHS)).mixing
    seen = TILES * config.encoder.flops().mixing
    tower = bool({"encoder", "connector"} & set(train))
    step -= mixing * (3 if tower or "decoder" in train else 1) + seen * (3 if "encoder" in train else 1)
    assert step == sum(weights.values())


def test_attention_of_the_encoder_is_what_torch_counts_and_of_the_decoder_half_of_it(
    one_process: BuildContext, tiny_model: Callable[..., ModelConfig], tiny_pack: Callable[..., PackedBatch]
) -> None:
    config = tiny_model()
    model = build_model(config, one_process)
    backend.initialise(model, seed=1)
    length = 24
    with sdpa_kernel(SDPBackend.MATH):  # the one that the counter sees into on a CPU
        with FlopCounterMode(display=False) as tower:
            seen = model.see(tiny_pack(0, (length,), TILES))
        with FlopCounterMode(display=False) as whole:
            model.stages[0](seen)
    for counter, ours in (
        (tower, TILES * config.encoder.flops().mixing),
        (whole, 2 * config.decoder.flops(length, length**2).mixing),
    ):
        theirs = {str(op): n for op, n in counter.get_flop_counts()["Global"].items()}
        assert ours == sum(n for op, n in theirs.items() if op not in {"aten.mm", "aten.addmm"}), theirs


def test_a_packs_samples_attend_apart_and_padding_costs_nothing(tiny_model: Callable[..., ModelConfig]) -> None:
    config = tiny_model()
    one, two = of((48,), 0, ()), of((24, 24), 0, ())
    difference = step_flops(config, ["decoder"], one) - step_flops(config, ["decoder"], two)
    assert difference == 3 * 2 * config.decoder.layers * config.decoder.hidden * (48**2 - 2 * 24**2)


def seen(model: VisionLanguageModel, shapes: list[tuple[int, int]], backward: bool) -> tuple[int, int, Amounts]:
    """Images of these shapes through a tower that takes any: operations by torch's counter, visual tokens, amounts."""
    images = [model.spec.tiling.plan(*shape) for shape in shapes]
    sizes = tuple(model.spec.tiling.size(image) for image in images)
    pixels = torch.randint(0, 256, (sum(3 * height * width for height, width in sizes),), dtype=torch.uint8)
    with FlopCounterMode(display=False) as counter:
        values = model.tower(VariedTiles(pixels, sizes)).values
        if backward:
            values.sum().backward()
    entry = Entry("vqa", 0, 0, 60, 1, 1.0, tuple(images), -1)
    return counter.get_total_flops(), len(values), amounts([Pack(0, 0, (entry,))], 96)


@pytest.mark.parametrize("name", ["eve", "eve_v2"])
def test_tiles_of_many_sizes_cost_what_torch_counts_for_each(one_process: BuildContext, name: str) -> None:
    """What is done once for all tiles is not counted, and cancels between these images and the first of them alone; nor
    is that EVE's class token looks at whole blocks of cells."""
    config = ModelConfig.parse(varied.MODELS[name] | {"injection": "inline", "decoder": varied.DECODER})
    model = build_model(config, one_process)
    backend.initialise(model, seed=1)
    many, one = seen(model, varied.SHAPES, backward=False), seen(model, varied.SHAPES[:1], backward=False)
    grids = [config.tiling.plan(*shape) for shape in varied.SHAPES[1:]]
    padding = sum(-(grid.columns * grid.rows) % BLOCK for grid in grids) * 4 * 2 * 16 if name == "eve" else 0
    assert step_flops(config, [], many[2]) - step_flops(config, [], one[2]) == many[0] - one[0] - padding > 0
    assert [visual_tokens(config, each[2]) for each in (many, one)] == [many[1], one[1]]
    alone = [seen(model, [shape], backward=False) for shape in varied.SHAPES]
    text = config.decoder.flops(60, 60**2).forward
    assert step_flops(config, [], many[2]) - text == sum(step_flops(config, [], each[2]) - text for each in alone)
    assert many[1] == sum(each[1] for each in alone) and len({each[1] for each in alone}) > 3


def test_the_way_back_through_tiles_of_many_sizes_is_what_torch_counts(one_process: BuildContext) -> None:
    config = ModelConfig.parse(varied.MODELS["eve_v2"] | {"injection": "inline", "decoder": varied.DECODER})
    model = build_model(config, one_process)
    backend.initialise(model, seed=1)
    found = [seen(model, shapes, backward=True) for shapes in (varied.SHAPES, varied.SHAPES[:1])]
    ours = [step_flops(config, ["encoder", "connector"], each[2]) for each in found]
    assert ours[0] - ours[1] == found[0][0] - found[1][0]


def test_text_alone_has_no_backward_where_only_the_tower_learns(tiny_model: Callable[..., ModelConfig]) -> None:
    config = tiny_model()
    text = of(LENGTHS, 0, seeing=())
    assert step_flops(config, ["connector"], text) == config.decoder.flops(48, text.squares).forward


@pytest.mark.parametrize(
    ("shape", "per_token"),  # Megatron-Bridge's published TFLOP/s over its tokens/s, sequences of 8192
    [
        ({"layers": 32, "hidden": 4096, "heads": 32, "kv_heads": 8, "ffn": 14336, "vocab": 128256}, 51.5e9),
        ({"layers": 80, "hidden": 8192, "heads": 64, "kv_heads": 8, "ffn": 28672, "vocab": 128256}, 449.2e9),
        ({"layers": 126, "hidden": 16384, "heads": 128, "kv_heads": 8, "ffn": 53248, "vocab": 128256}, 2524e9),
    ],
)
def test_llama_3_costs_what_is_published(shape: dict[str, int], per_token: float) -> None:
    forward = Qwen2(**shape).flops(8192, 8192**2)
    assert (forward.forward + forward.backward(True, True)) / 8192 == pytest.approx(per_token, rel=2e-3)


def test_what_a_backward_pass_costs() -> None:
    one = Flops(weights=1, mixing=10, entrance=100)
    assert [one.backward(*how) for how in ((False, False), (False, True), (True, False), (True, True))] == [
        0, 21, 122, 122,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("device", "tflops"),
    [
        ("NVIDIA H100 80GB HBM3", 989.4),
        ("NVIDIA H100 PCIe", 756.0),
        ("NVIDIA H200", 989.4),
        ("NVIDIA A100-SXM4-80GB", 312.0),
        ("NVIDIA A10G", None),
        ("cpu", None),
    ],
)
def test_the_peak_of_a_device(device: str, tflops: float | None) -> None:
    assert peak_tflops(device) == tflops


def test_torch_counts_two_operations_to_a_multiply_add() -> None:
    with FlopCounterMode(display=False) as counter:
        torch.ones(2, 3) @ torch.ones(3, 5)
    assert counter.get_total_flops() == 2 * 2 * 3 * 5

"""The plain statement of EVE against what its paper and its released code's counts say."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from plain_eve import BothBranches, PatchAligning, PatchEmbedding, PatchEmbeddingV2, dissimilarity, in_cells
from torch import Tensor, nn

from megavlm.kernels import torchvision


def weights(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def drawn(module: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    for p in module.parameters():
        nn.init.normal_(p, std=0.3)
    return module


def test_counts_are_the_published_ones() -> None:
    with torch.device("meta"):
        one = PatchEmbedding(1024, 4096)
        two, aligning = PatchEmbeddingV2(1024, 3584), PatchAligning(4096, 1024, 32)
    assert (weights(one), weights(one.projector), weights(aligning)) == (29_982_720, 20_979_712, 43_067_392)
    assert weights(two) == 3 * 256 * 1024 + 1024 + 1024 * 4 * 3584 + 3584 + 2 * 3584
    assert list(aligning.taps) == ["0", "4", "8", "12", "16", "20", "24", "28", "32"]


@pytest.mark.parametrize(("rows", "columns", "tokens"), [(24, 24, 601), (18, 24, 451), (24, 18, 457), (48, 27, 1345)])
def test_tokens_of_an_image(rows: int, columns: int, tokens: int) -> None:
    found = drawn(PatchEmbedding(8, 4, patch=2, heads=2))(torch.rand(3, 4 * rows, 4 * columns))
    assert found.shape == (tokens, 4)
    assert in_cells(found, rows, columns).shape == (rows * columns, 4)


def test_a_window_reads_from_itself_alone_and_the_class_token_from_all() -> None:
    embedding, image = drawn(PatchEmbedding(8, 8, patch=2, heads=2)), torch.rand(3, 8, 12) * 255
    other = image.clone()
    other[:, 4:, 8:] = 0  # of 2 x 3 cells the last
    moved = (embedding(image) - embedding(other)).abs().amax(-1) > 1e-6
    assert moved.nonzero().flatten().tolist() == [0, 7]


def test_aligning_is_half_the_squared_distance_of_unit_vectors() -> None:
    torch.manual_seed(1)
    states = tuple(torch.randn(6, 8) for _ in range(5))
    found, wanted = drawn(PatchAligning(8, 16, 4, every=2, heads=4))(states), torch.randn(6, 16)
    squares = (F.normalize(found, dim=-1) - F.normalize(wanted, dim=-1)).square().sum(-1).mean()
    assert dissimilarity(found, wanted).item() == pytest.approx(squares.item() / 2, abs=1e-6)


def test_aligning_reads_the_tapped_states_at_the_same_place() -> None:
    """Written out with torch's attention, whose scale is told it."""
    torch.manual_seed(2)
    states = tuple(torch.randn(6, 8) for _ in range(5))
    module = drawn(PatchAligning(8, 16, 4, every=2, heads=4))

    def of(tap: int) -> Tensor:
        return module.taps[str(tap)](module.norms[str(tap)](states[tap]))

    keys = torch.stack([of(0), of(2)], 1).unflatten(-1, (4, 4)).transpose(1, 2)
    query = of(4).view(6, 4, 1, 4)
    found = F.scaled_dot_product_attention(query, keys, keys, scale=16**-0.5).flatten(1)
    torch.testing.assert_close(module(states), module.output(found) + module.input(states[4]), atol=1e-5, rtol=0)


def test_both_branches_alike_are_the_published_layer() -> None:
    torchvision.load()  # transformers imports it
    from transformers import Qwen2Config, Qwen2ForCausalLM

    shape = Qwen2Config(
        vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2,
    )  # fmt: skip
    model = drawn(Qwen2ForCausalLM(shape)).model
    x, visual = torch.randn(9, 16), torch.arange(9)[:, None] % 3 == 0
    rope = model.rotary_emb(x[None], torch.arange(9)[None])
    wanted = model(inputs_embeds=x[None]).last_hidden_state[0]
    for layer in model.layers:
        x = BothBranches(layer, layer)(x, rope, visual)
    torch.testing.assert_close(model.norm(x), wanted, atol=1e-5, rtol=0)

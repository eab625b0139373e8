"""Log-probabilities of texts against the softmax of a plain forward pass over each text by itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch

from megavlm.megatron_mm import backend
from megavlm.megatron_mm.backend import build_context
from megavlm.megatron_mm.config import ModelConfig, Parallel
from megavlm.megatron_mm.contracts import PackedBatch
from megavlm.megatron_mm.inference import score as scoring
from megavlm.megatron_mm.inference.likely import read_rows, rows_of
from megavlm.megatron_mm.inference.score import score, text_pack
from megavlm.megatron_mm.model import VisionLanguageModel, build_model
from megavlm.platform.errors import InputError

TEXTS = [[3, 1, 4, 1, 5, 9, 2, 6], [53], [5, 8, 9, 7, 9]]


@pytest.fixture
def model(tiny_model: Callable[..., ModelConfig]) -> Iterator[VisionLanguageModel]:
    backend.init_distributed(Parallel(), seed=1)
    built = build_model(tiny_model(decoder={"max_positions": 64, "vocab": 97}), build_context(Parallel()))
    backend.initialise(built, seed=3)
    yield built.eval()
    backend.shutdown()


def truth(model: VisionLanguageModel, ids: list[int]) -> torch.Tensor:
    """Float [n - 1, vocab]: the logarithms of what follows each token but the last."""
    with torch.no_grad():
        return model(text_pack([ids], model), gather_logits=True)[0, :-1].double().log_softmax(-1)


def test_scores_are_the_log_softmax_of_a_full_forward(
    model: VisionLanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scoring, "ROWS", 4)
    found = score(model, text_pack(TEXTS, model), top=97)
    for ids, likely in zip(TEXTS, found, strict=True):
        wanted = truth(model, ids)
        assert [each.token for each in likely] == ids[1:]
        for place, each in enumerate(likely):
            assert each.logprob == pytest.approx(wanted[place, ids[place + 1]].item(), abs=1e-5)
            assert [i for i, _ in each.top] == sorted(range(97), key=lambda i: -dict(each.top)[i])
            torch.testing.assert_close(
                torch.tensor([p for _, p in sorted(each.top)]).double(), wanted[place], atol=1e-5, rtol=0
            )


def test_a_pack_with_images_is_scored_like_any_other(
    model: VisionLanguageModel, tiny_pack: Callable[..., PackedBatch]
) -> None:
    pack = tiny_pack()
    with torch.no_grad():
        wanted = -torch.nn.functional.cross_entropy(
            model(pack, gather_logits=True)[0], pack.tokens[0].roll(-1), reduction="none"
        )
    found = score(model, pack)
    assert [len(each) for each in found] == [16, 22, 7]
    assert [e.logprob for e in found[1]] == pytest.approx(wanted[17:39].tolist(), abs=1e-5)
    assert found[1][0].top == ()


@pytest.mark.parametrize(
    ("texts", "message"), [([[]], "no tokens"), ([[1, 97]], "id 97"), ([[1] * 65], "64 positions")]
)
def test_what_is_no_text_is_refused(model: VisionLanguageModel, texts: list[list[int]], message: str) -> None:
    with pytest.raises(InputError, match=message):
        text_pack(texts, model)


def test_more_of_the_likeliest_than_there_are_tokens() -> None:
    logits = torch.tensor([[0.0, 1.0, -torch.inf]])
    (found,) = read_rows(rows_of(logits, torch.tensor([1]), top=5))
    assert [i for i, _ in found.top] == [1, 0, 2] and found.top[0][1] == found.logprob

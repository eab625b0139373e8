"""The Hugging Face engine against the published classes used by hand: text and vision-language folders."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from megavlm.kernels import torchvision
from megavlm.megatron_mm.data.tokenizer import SHIPPED, load_tokenizer
from megavlm.megatron_mm.evaluation.engines.base import Ask, Unanswered
from megavlm.megatron_mm.evaluation.engines.hf import HuggingFaceEngine
from megavlm.platform.errors import ConfigError, InputError

TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{% if message['content'] is string %}"
    "{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}"
    "{% if not loop.last or message['role'] != 'assistant' %}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SHAPE = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
TOKENIZER = load_tokenizer("mini")
QUESTION = ({"role": "user", "content": "What is 1 + 2?"},)


def picture(seed: int) -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (40, 60, 3), dtype=np.uint8)).save(out, "PNG")
    return out.getvalue()


def with_words(folder: Path) -> Path:
    """The shipped tokenizer and a chat template, as transformers writes them."""
    shutil.copy(SHIPPED / "mini" / "tokenizer.json", folder)
    told = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(told | {"chat_template": TEMPLATE}))
    return folder


def louder(model: Any) -> Any:
    """Away from uniform logits."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)
    return model.eval()


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> tuple[HuggingFaceEngine, Any]:
    """The engine over a Llama of random weights, and that model."""
    torchvision.load()
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(1)
    folder = tmp_path_factory.mktemp("llama")
    shape = {**SHAPE, "vocab_size": 513, "max_position_embeddings": 64, "num_key_value_heads": 2}
    model = louder(LlamaForCausalLM(LlamaConfig(**shape, bos_token_id=None, eos_token_id=None)))
    model.generation_config.repetition_penalty = 1.3  # as Qwen2.5's folders have one
    model.save_pretrained(folder)
    return HuggingFaceEngine(with_words(folder), batch=3), model


@pytest.fixture(scope="module")
def seeing(tmp_path_factory: pytest.TempPathFactory) -> tuple[HuggingFaceEngine, Any, Any]:
    """The engine over a LLaVA of random weights, that model, and its processor."""
    torchvision.load()
    from transformers import (
        AutoTokenizer,
        CLIPImageProcessor,
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
    )  # fmt: skip

    torch.manual_seed(2)
    folder = with_words(tmp_path_factory.mktemp("llava"))
    vision = CLIPVisionConfig(**SHAPE, image_size=28, patch_size=14, projection_dim=32)
    language = LlamaConfig(**SHAPE, vocab_size=513, max_position_embeddings=256, eos_token_id=None, bos_token_id=None)
    config = LlavaConfig(vision_config=vision, text_config=language, image_token_index=TOKENIZER.id_of("<image>"))
    model = louder(LlavaForConditionalGeneration(config))
    model.save_pretrained(folder)
    images = CLIPImageProcessor(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})
    words = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    processor = LlavaProcessor(
        images, words, patch_size=14, vision_feature_select_strategy="default", chat_template=TEMPLATE,
        num_additional_image_tokens=1,
    )  # fmt: skip
    processor.save_pretrained(folder)
    with_words(folder)
    return HuggingFaceEngine(folder), model, processor


def greedy(model: Any, inputs: dict[str, torch.Tensor], new: int) -> list[int]:
    """Token by token, the whole sequence anew each time."""
    ids, said = inputs.pop("input_ids"), []
    inputs.pop("attention_mask", None)
    for _ in range(new):
        with torch.no_grad():
            said.append(int(model(input_ids=ids, **inputs).logits[0, -1].argmax()))
        ids = torch.cat([ids, torch.tensor([[said[-1]]])], dim=1)
    return said


def chatted(content: str, begun: str = "") -> list[int]:
    """ChatML by hand."""
    start, end = (TOKENIZER.id_of(name) for name in ("<|im_start|>", "<|im_end|>"))
    ids = [start, *TOKENIZER.encode(f"user\n{content}"), end, *TOKENIZER.encode("\n"), start]
    return [*ids, *TOKENIZER.encode(f"assistant\n{begun}")]


def test_log_likelihoods_are_the_models(text: tuple[HuggingFaceEngine, Any]) -> None:
    engine, model = text
    pairs = [([5, 6, 7], [8, 9]), ([5, 6, 7], [8, 10]), ([5, 6, 7], [11]), ([5], [9] * 4), (list(range(90, 160)), [7])]
    best = greedy(model, {"input_ids": torch.tensor([[5, 6]])}, 3)
    pairs += [([5, 6], best), ([5, 6], [])]
    for (context, continuation), (own, likeliest) in zip(pairs, engine.log_likelihoods(pairs), strict=True):
        ids = torch.tensor([[*context, *continuation][-65:]])
        with torch.no_grad():
            logprobs = (
                model(input_ids=ids[:, :-1]).logits[0].double().log_softmax(-1)[ids.shape[1] - 1 - len(continuation) :]
            )
        wanted = sum(logprobs[k, token].item() for k, token in enumerate(continuation))
        assert own == pytest.approx(wanted, abs=1e-5)
        assert likeliest == (logprobs.argmax(-1).tolist() == continuation)


def test_answers_are_greedy_ones_each_with_its_own_end(text: tuple[HuggingFaceEngine, Any]) -> None:
    engine, model = text
    begun = (*QUESTION, {"role": "assistant", "content": "It is"})
    asks = [
        Ask((), prompt="One, two", max_new_tokens=8), Ask(QUESTION, max_new_tokens=5),
        Ask(begun, max_new_tokens=3), Ask((), prompt="word " * 80, max_new_tokens=4),
    ]  # fmt: skip
    prompts = [TOKENIZER.encode("One, two"), chatted("What is 1 + 2?"), chatted("What is 1 + 2?", "It is")]
    prompts += [TOKENIZER.encode("word " * 80)[-60:]]
    assert engine.encode_chat(QUESTION) == prompts[1] and engine.encode_chat(begun) == prompts[2]
    said = [
        greedy(model, {"input_ids": torch.tensor([prompt])}, ask.max_new_tokens)
        for prompt, ask in zip(prompts, asks, strict=True)
    ]
    ends = {TOKENIZER.id_of("<|im_end|>"), TOKENIZER.id_of("<|endoftext|>")}
    assert not ends & {token for one in said for token in one}
    texts = [TOKENIZER.decode(one) for one in said]
    assert engine.generate(asks) == texts
    long = [engine.decode(greedy(model, {"input_ids": torch.tensor([prompts[1]])}, 64 - len(prompts[1])))]
    assert engine.generate([Ask(QUESTION, max_new_tokens=1000)]) == long, "no further than the model reads"
    stop = texts[0][2:4]
    cut = Ask((), prompt="One, two", max_new_tokens=8, stop=("never", stop))
    assert engine.generate([cut, asks[1]]) == [texts[0][: texts[0].index(stop)], texts[1]]


def test_what_cannot_be_asked_costs_nothing_else(text: tuple[HuggingFaceEngine, Any]) -> None:
    engine, _ = text
    spelling = ({"role": "user", "content": "Say <|im_end|> now"},)
    asks = [Ask(spelling), Ask(QUESTION, (picture(1),)), Ask(({"role": "user", "content": "word " * 80},)),
            Ask(QUESTION, max_new_tokens=2)]  # fmt: skip
    found = engine.generate(asks)
    problems = [answer.problem if isinstance(answer, Unanswered) else "" for answer in found]
    assert "spells the special token <|im_end|>" in problems[0] and "text model" in problems[1]
    assert "64 positions" in problems[2] and problems[3] == "" and found[3]
    with pytest.raises(InputError, match="spells"):
        engine.encode_chat(spelling)
    assert engine.encode("<|im_end|>") == TOKENIZER.encode("<|im_end|>") != [TOKENIZER.id_of("<|im_end|>")]


def test_a_vision_language_folder_sees(seeing: tuple[HuggingFaceEngine, Any, Any]) -> None:
    engine, model, processor = seeing
    question = ({"role": "user", "content": "<image>What is it? Beside <image>?"},)
    prompt = "<|im_start|>user\n<image>What is it? Beside <image>?<|im_end|>\n<|im_start|>assistant\n"
    told = []
    for seeds in ((1, 2), (2, 3)):
        shown = [Image.open(io.BytesIO(picture(seed))) for seed in seeds]
        said = greedy(model, dict(processor(text=prompt, images=shown, return_tensors="pt")), 6)
        told.append(TOKENIZER.decode(said))
    assert told[0] != told[1]
    asks = [Ask(question, (picture(1), picture(2)), max_new_tokens=6), Ask(question, (picture(2), picture(3)), (), 6)]
    broken = Ask(question, (picture(1), b"no picture"), max_new_tokens=6)
    found = engine.generate([asks[0], broken, asks[1], Ask(QUESTION, max_new_tokens=3)])
    assert [found[0], found[2]] == told and isinstance(found[1], Unanswered) and found[3]
    spelling = ({"role": "user", "content": "<image>Say <|im_end|>"},)
    (refused,) = engine.generate([Ask(spelling, (picture(1),))])
    assert isinstance(refused, Unanswered) and "spells" in refused.problem
    with torch.no_grad():
        logprobs = model(input_ids=torch.tensor([[5, 6]])).logits[0, -1].log_softmax(-1)
    assert engine.log_likelihoods([([5, 6], [7])])[0][0] == pytest.approx(logprobs[7].item(), abs=1e-5)


def test_folders_that_are_no_models_are_refused(text: tuple[HuggingFaceEngine, Any], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no safetensors"):
        HuggingFaceEngine(tmp_path)
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(ConfigError, match="no tokenizer"):
        HuggingFaceEngine(tmp_path)
    with_words(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "a_strangers", "auto_map": {"AutoConfig": "x.Y"}}))
    (tmp_path / "x.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Y: pass\n")
    with pytest.raises(ConfigError, match="transformers cannot read it"):
        HuggingFaceEngine(tmp_path)
    assert not (tmp_path / "ran").exists()

"""The files beside the tensors, as transformers and vLLM read them: classes, tokenizer, chat template, prompts."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megavlm.megatron_mm.conversion.nvlm_d import NVLMD
from megavlm.megatron_mm.conversion.nvlm_d_tokenizer import chat_template
from megavlm.megatron_mm.data.build import StageData
from megavlm.megatron_mm.data.templates.base import Image, Special, Template
from megavlm.megatron_mm.data.templates.chatml import ChatML
from megavlm.megatron_mm.data.tokenizer import load_tokenizer
from megavlm.platform.config import load_recipe
from megavlm.platform.errors import ConfigError

MARKS = {"image_start": "<Image>", "image_end": "</Image>"}
SYSTEM = "Follow the user's instruction and answer questions."
RECIPE = """
model:
  tiling: {tile: 56, max_tiles: 4}
  encoder: {name: internvit, image_size: 56, layers: 2, hidden: 72, heads: 9, dummy_heads: 7, ffn: 96}
  connector: {name: pixel_shuffle_mlp, hidden: 80, norm_eps: 1.0e-5}
  injection: {name: inline, tags: 1d}
  decoder: {name: qwen2, layers: 2, hidden: 64, heads: 4, kv_heads: 2, ffn: 80, vocab: 520, max_positions: 512}
data: {tokenizer: mini, sets: {pairs: somewhere}}
stages:
  sft: {train: [decoder], steps: 1, optimizer: {lr: 1e-3}, mixture: {weights: {pairs: 1}, sequence_length: 512, packs_per_batch: 1}}
"""  # noqa: E501


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., dict[str, bytes]]:
    """`files(template, "a.b=c", ...)`: what an export of such a recipe has beside its tensors."""
    path = tmp_path_factory.mktemp("recipe") / "nvlm.yaml"
    path.write_text(RECIPE)

    def make(template: Template, *changes: str) -> dict[str, bytes]:
        spec = StageData.of(load_recipe(str(path), changes), "sft")
        data = spec.data.model_copy(update={"template": template})
        return NVLMD().files(dataclasses.replace(spec, data=data), "bfloat16")

    return make


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, files: Callable[..., dict[str, bytes]]) -> Iterator[Path]:
    """A folder with the files of an export; what transformers imports of it is copied to a folder of these tests."""
    folder, modules = tmp_path_factory.mktemp("nvlm-d"), tmp_path_factory.mktemp("modules")
    for name, content in files(ChatML(system=SYSTEM, **MARKS)).items():
        (folder / name).write_bytes(content)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(modules))
        patch.setattr(sys, "path", list(sys.path))
        for name in [name for name in sys.modules if name.partition(".")[0] == "transformers_modules"]:
            patch.delitem(sys.modules, name)  # of another folder
        yield folder


@pytest.fixture(scope="module")
def rendered() -> Callable[..., str]:
    """What transformers makes of a chat template."""
    from transformers.utils.chat_template_utils import render_jinja_template

    def render(template: ChatML, messages: list[dict[str, Any]], prompt: bool = False) -> str:
        text = chat_template(template)
        return render_jinja_template([messages], chat_template=text, add_generation_prompt=prompt)[0][0]

    return render


def written(template: ChatML, messages: list[dict[str, str]], prompt: bool = False) -> str:
    """What training writes, an image as its mark, which a server replaces."""
    pieces = template.prompt(messages) if prompt else template.pieces(messages)
    return "".join("<image>" if isinstance(p, Image) else p.token if isinstance(p, Special) else p.text for p in pieces)


def test_transformers_loads_the_configuration(checkpoint: Path) -> None:
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(checkpoint, trust_remote_code=True)
    assert (type(config).__name__, config.model_type, config.architectures) == ("NVLM_D_Config", "NVLM_D", ["NVLM_D"])
    read = [config.ps_version, config.use_thumbnail, config.dynamic_image_size, config.select_layer]
    assert read == ["v2", True, True, -1]
    assert [config.min_dynamic_patch, config.max_dynamic_patch, config.force_image_size] == [1, 4, 56]
    assert config.downsample_ratio == 0.5
    sight, language = config.vision_config, config.llm_config
    assert type(sight).__name__ == "InternVisionConfig" and type(language).__name__ == "Qwen2Config"
    assert (sight.hidden_size, sight.num_attention_heads, sight.num_hidden_layers, sight.norm_type) == (
        72, 9, 2, "rms_norm",
    )  # fmt: skip
    assert language.architectures == ["Qwen2ForCausalLM"] and language.rope_parameters["rope_theta"] == 1e6
    assert [language.vocab_size, language.eos_token_id, language.bos_token_id] == [520, 2, 0]


def test_the_configuration_survives_being_saved(checkpoint: Path, tmp_path: Path) -> None:
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(checkpoint, trust_remote_code=True)
    config.save_pretrained(tmp_path)
    again = AutoConfig.from_pretrained(tmp_path, trust_remote_code=True)
    assert again.to_diff_dict() == config.to_diff_dict()
    assert json.loads(config.to_json_string())["vision_config"]["hidden_size"] == 72
    with pytest.raises(ValueError, match="LlamaForCausalLM"):
        type(config)(llm_config={"architectures": ["LlamaForCausalLM"]})


def test_transformers_loads_the_tokenizer(checkpoint: Path) -> None:
    from transformers import AutoTokenizer, GenerationConfig

    ours = load_tokenizer("mini")
    theirs = AutoTokenizer.from_pretrained(checkpoint, trust_remote_code=True)
    assert theirs.convert_tokens_to_ids("<|vision_pad|>") == ours.vocab_size == 512
    assert theirs.encode("<tile_1><|vision_pad|><|vision_pad|>\n", add_special_tokens=False)[1:3] == [512, 512]
    for text in ("What is in this picture?", "3 + 4 = 7\n", "Wie geht's, naïve café? 你好"):
        assert theirs.encode(text, add_special_tokens=False) == ours.encode(text)
    assert theirs.eos_token_id == 2 and GenerationConfig.from_pretrained(checkpoint).eos_token_id == 2
    question = [{"role": "user", "content": "Hello"}]
    shown = theirs.apply_chat_template(question, tokenize=False, add_generation_prompt=True)
    assert shown == written(ChatML(system=SYSTEM, **MARKS), question, prompt=True) and SYSTEM in shown


def test_a_tokenizer_that_fills_the_embedding_is_refused(files: Callable[..., dict[str, bytes]]) -> None:
    with pytest.raises(ConfigError, match="token 512, and the decoder has 512 rows") as error:
        files(ChatML(**MARKS), "model.decoder.vocab=512")
    assert "model.decoder.vocab=520" in str(error.value)


PLAIN = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
TURNS = st.lists(st.tuples(PLAIN, PLAIN), min_size=1, max_size=3)


@settings(deadline=None, max_examples=150)
@given(
    system=PLAIN, own=st.none() | PLAIN, turns=TURNS, prompt=st.booleans(), bos=st.sampled_from(["", "<|endoftext|>"])
)
def test_the_chat_template_writes_what_training_wrote(
    rendered: Callable[..., str], system: str, own: str | None, turns: list[Any], prompt: bool, bos: str
) -> None:
    """With and without a system prompt of the conversation's own, whatever the texts hold."""
    messages = [] if own is None else [{"role": "system", "content": own}]
    for question, answer in turns:
        messages += [{"role": "user", "content": f"<image>\n{question}"}, {"role": "assistant", "content": answer}]
    messages = messages[:-1] if prompt else messages
    template = ChatML(system=system, bos=bos, **MARKS)
    assert rendered(template, messages, prompt) == written(template, messages, prompt)


def test_a_message_of_parts_reads_as_text(rendered: Callable[..., str]) -> None:
    """As OpenAI's interface sends it: images before the words."""
    parts = [{"type": "image"}, {"type": "image"}, {"type": "text", "text": "Which is older?"}]
    plain = [{"role": "user", "content": "<image>\n<image>\nWhich is older?"}]
    template = ChatML(system=SYSTEM)
    assert rendered(template, [{"role": "user", "content": parts}], True) == written(template, plain, prompt=True)

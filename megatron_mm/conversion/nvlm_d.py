"""Hugging Face's `NVLM_D`, as nvidia/NVLM-D-72B has it and vLLM 0.33 loads it.

InternViT with its dummy heads, a two-layer MLP as wide inside as the decoder's ffn, and Qwen2.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from . import nvlm_d_config as configs
from .formats import Format, as_json
from .internvit import WITH_DUMMY_HEADS
from .nvlm_d_check import check_model, check_template
from .nvlm_d_tokenizer import RESOURCES, chat_template, tokenizer_config, with_pad
from .qwen2 import QWEN2
from .rules import Rule, WeightMap

if TYPE_CHECKING:
    from ..config import ModelConfig
    from ..data.build import StageData

CLASSES = ("configuration_nvlm_d.py", "configuration_intern_vit.py")  # transformers imports them from the checkpoint
MLP1 = WeightMap(
    [
        Rule("norm.weight", "0.weight"),
        Rule("norm.bias", "0.bias"),
        Rule("mlp.linear_fc1.weight", "1.weight"),
        Rule("mlp.linear_fc2.weight", "3.weight"),
    ]
)


class NVLMD(Format):
    """NVLM-D with Qwen2; what it cannot say is refused by nvlm_d_check.py."""

    name = "nvlm_d"
    architectures = ("NVLM_D",)
    maps = {
        "encoder": WITH_DUMMY_HEADS.under("vision_model."),
        "connector": MLP1.under("mlp1."),
        "decoder": QWEN2.under("language_model."),
    }
    # nested configurations are compared by their own formats; how many tiles there are is each stage's
    loose = frozenset({*configs.PARTS, "auto_map", "template", "min_dynamic_patch", "max_dynamic_patch"})

    def fits(self, model: ModelConfig) -> None:
        """Raise ConfigError naming the first value that the format cannot say."""
        check_model(model)

    def config(self, model: ModelConfig) -> dict[str, Any]:
        """NVLM_D_Config's keys."""
        return configs.config(model)

    def compare(self, model: ModelConfig, published: Mapping[str, Any], where: str) -> None:
        """Raise ConfigError naming the first value of a published config.json that `model` contradicts."""
        super().compare(model, published, where)
        for key, part in configs.PARTS.items():
            part.compare(model, published.get(key) or {}, f"{where}: {key}")

    def files(self, spec: StageData, dtype: str) -> dict[str, bytes]:
        """Configurations, the classes that read them, tokenizer and chat template.

        Raises ConfigError for another template than ChatML, or where no row is left for the token under an image.
        """
        template, tokenizer = check_template(spec.data.template), spec.tokenizer()
        tokens = with_pad(tokenizer, spec.model)
        config = self.config(spec.model)
        for key in configs.PARTS:
            config[key] |= {"torch_dtype": dtype}
        config["llm_config"] |= tokens.ids
        documents = {
            "config.json": config | {"torch_dtype": dtype},
            "generation_config.json": configs.generation(tokens.ids, tokenizer.padding),
            "preprocessor_config.json": configs.preprocessor(spec.model),
            "tokenizer_config.json": tokenizer_config(spec.model),
        }
        texts = {"tokenizer.json": tokens.text, "chat_template.jinja": chat_template(template)}
        texts |= {name: (RESOURCES / name).read_text() for name in CLASSES}
        return {name: as_json(found) for name, found in documents.items()} | {n: t.encode() for n, t in texts.items()}

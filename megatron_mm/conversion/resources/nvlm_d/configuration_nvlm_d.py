"""The configuration of `NVLM_D` checkpoints; transformers imports it from a checkpoint's folder."""

from __future__ import annotations

from typing import Any

from transformers import PretrainedConfig, Qwen2Config

from .configuration_intern_vit import InternVisionConfig

LANGUAGE_MODEL = "Qwen2ForCausalLM"


class NVLM_D_Config(PretrainedConfig):
    """An InternViT (`vision_config`), a two-layer MLP as wide inside as the decoder's, and a Qwen2 (`llm_config`).

    `ps_version` is the pixel shuffle's order of tokens: "v2" row by row, "v1" column by column. `select_layer` is the
    vision encoder's layer whose output is read, -1 for the last. Raises ValueError for another language model.
    """

    model_type = "NVLM_D"

    def __init__(
        self,
        vision_config: dict[str, Any] | InternVisionConfig | None = None,
        llm_config: dict[str, Any] | Qwen2Config | None = None,
        select_layer: int = -1,
        force_image_size: int | None = None,
        downsample_ratio: float = 0.5,
        ps_version: str = "v2",
        dynamic_image_size: bool = True,
        use_thumbnail: bool = True,
        min_dynamic_patch: int = 1,
        max_dynamic_patch: int = 6,
        template: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.vision_config = _made(InternVisionConfig, vision_config)
        self.llm_config = _made(Qwen2Config, llm_config)
        self.select_layer = select_layer
        self.force_image_size = force_image_size
        self.downsample_ratio = downsample_ratio
        self.ps_version = ps_version
        self.dynamic_image_size = dynamic_image_size
        self.use_thumbnail = use_thumbnail
        self.min_dynamic_patch = min_dynamic_patch
        self.max_dynamic_patch = max_dynamic_patch
        self.template = template
        if (self.llm_config.architectures or [LANGUAGE_MODEL])[0] != LANGUAGE_MODEL:
            raise ValueError(
                f"llm_config.architectures {self.llm_config.architectures}: only {LANGUAGE_MODEL} is known"
            )

    def to_dict(self) -> dict[str, Any]:
        """The keys of config.json, those of both parts nested."""
        parts = {"vision_config": self.vision_config.to_dict(), "llm_config": self.llm_config.to_dict()}
        return super().to_dict() | parts


def _made(kind: type[Any], given: Any) -> Any:
    return given if isinstance(given, PretrainedConfig) else kind(**(given or {}))

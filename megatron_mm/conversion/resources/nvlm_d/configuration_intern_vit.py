"""InternViT's configuration as `NVLM_D` checkpoints carry it; transformers imports it from a checkpoint's folder."""

from __future__ import annotations

from typing import Any

from transformers import PretrainedConfig


class InternVisionConfig(PretrainedConfig):
    """Sizes of the vision encoder: those of InternViT-6B-448px-V1-5 unless config.json says otherwise.

    `num_attention_heads` counts the heads that were trained. The dummy heads that pad the tensors are not among them.
    """

    model_type = "intern_vit_6b"

    def __init__(
        self,
        num_channels: int = 3,
        image_size: int = 448,
        patch_size: int = 14,
        hidden_size: int = 3200,
        num_attention_heads: int = 25,
        intermediate_size: int = 12800,
        num_hidden_layers: int = 45,
        qkv_bias: bool = False,
        qk_normalization: bool = True,
        norm_type: str = "rms_norm",
        hidden_act: str = "gelu",
        layer_norm_eps: float = 1e-6,
        initializer_factor: float = 0.1,
        initializer_range: float = 1e-10,
        attention_dropout: float = 0.0,
        dropout: float = 0.0,
        drop_path_rate: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.num_channels = num_channels
        self.image_size = image_size
        self.patch_size = patch_size
        self.hidden_size = hidden_size
        self.num_attention_heads = num_attention_heads
        self.intermediate_size = intermediate_size
        self.num_hidden_layers = num_hidden_layers
        self.qkv_bias = qkv_bias
        self.qk_normalization = qk_normalization
        self.norm_type = norm_type
        self.hidden_act = hidden_act
        self.layer_norm_eps = layer_norm_eps
        self.initializer_factor = initializer_factor
        self.initializer_range = initializer_range
        self.attention_dropout = attention_dropout
        self.dropout = dropout
        self.drop_path_rate = drop_path_rate

"""The vision tower of SigLIP (Zhai et al. 2023, arXiv 2303.15343), without its pooling head."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import PositiveInt

from .replicated import Replicated


class Siglip(Replicated):
    """Shape of a SigLIP ViT; the defaults are so400m-patch14-384: 27 x 27 patches.

    base-patch16-224: image_size=224, patch_size=16, layers=12, hidden=768, heads=12, ffn=3072. The last hidden state
    (layer -1) has passed the norm after the layers, as in the published tower; others have not.
    """

    family: ClassVar[str] = "SiglipVision"
    activation: ClassVar[str] = "gelu_pytorch_tanh"
    trained_with_class_token: ClassVar[bool] = False
    patch_bias: ClassVar[bool] = True
    entry_norm: ClassVar[bool] = False
    exit_norm: ClassVar[bool] = True

    name: Literal["siglip"] = "siglip"
    image_size: PositiveInt = 384
    patch_size: PositiveInt = 14
    layers: PositiveInt = 27
    hidden: PositiveInt = 1152
    heads: PositiveInt = 16
    ffn: PositiveInt = 4304
    norm_eps: float = 1e-6
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)  # preprocessor_config.json
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)

"""The vision tower of CLIP (Radford et al. 2021, arXiv 2103.00020), as OpenAI published ViT-L/14 at 224 and 336 px."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import PositiveInt

from .replicated import Replicated


class Clip(Replicated):
    """Shape of a CLIP ViT; the defaults are ViT-L/14 at 336 px, and the features LLaVA 1.5's: layer -2, no class token.

    224 px: image_size=224. 448 px: image_size=448 with trained_size=336, whose positions are resized. The last hidden
    state (layer -1) passes no norm either: the published tower has one for the class token alone.

    Eagle 1's (arXiv 2408.15998, released code): layer=-1, class_token="dropped" - the patches never see it.
    MMFuser's (arXiv 2410.11829): layer=[3, 8, 13, 18, 23].
    """

    family: ClassVar[str] = "CLIPVision"
    activation: ClassVar[str] = "quick_gelu"
    trained_with_class_token: ClassVar[bool] = True
    patch_bias: ClassVar[bool] = False
    entry_norm: ClassVar[bool] = True
    exit_norm: ClassVar[bool] = False

    name: Literal["clip"] = "clip"
    image_size: PositiveInt = 336
    patch_size: PositiveInt = 14
    layers: PositiveInt = 24
    hidden: PositiveInt = 1024
    heads: PositiveInt = 16
    ffn: PositiveInt = 4096
    class_token: Literal["in_layers", "dropped"] = "in_layers"  # dropped: taken out before the first layer
    norm_eps: float = 1e-5
    mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)  # preprocessor_config.json
    std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)

    @property
    def class_tokens(self) -> int:
        """How many tokens stand before the patches in the layers."""
        return int(self.class_token == "in_layers")

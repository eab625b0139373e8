"""Any timm vision transformer, EVA-02 among them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import PositiveInt

from megavlm.kernels import torchvision

from .base import Embedder

if TYPE_CHECKING:
    import torch


class Timm(Embedder):
    """A timm model without its classifier. `pretrained` is the path of a weights file."""

    name: str = "timm"
    model: str = "eva02_base_patch14_224"
    image_size: PositiveInt | None = None  # side in pixels; null: the model's own

    def load(self) -> tuple[torch.nn.Module, int, np.ndarray, np.ndarray]:
        """timm reads the weights file with torch.load(weights_only=True) or as safetensors."""
        torchvision.load()
        import timm

        options: dict[str, Any] = {} if self.image_size is None else {"img_size": self.image_size}
        module = timm.create_model(self.model, num_classes=0, checkpoint_path=self.pretrained or "", **options)
        config: dict[str, Any] = vars(module)["pretrained_cfg"]
        mean, std = (np.asarray(config[name], dtype=np.float32) for name in ("mean", "std"))
        return module, self.image_size or int(config["input_size"][-1]), mean, std

    def trunk(self, module: torch.nn.Module) -> torch.nn.Module:
        """The model itself."""
        return module

"""The image tower of an OpenCLIP model: EVA02-L-14 is what EVE's and DenseFusion's curation cite."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING

import numpy as np

from megavlm.kernels import torchvision

from .base import Embedder

if TYPE_CHECKING:
    import torch


class OpenClip(Embedder):
    """An OpenCLIP model's image tower. `pretrained` is the path of a weights file or one of OpenCLIP's tags."""

    name: str = "open_clip"
    model: str = "EVA02-L-14"

    def lacks(self) -> str | None:
        """Also a tag's weights, where no earlier download left them."""
        if importlib.util.find_spec("open_clip") is None:
            return "the package open_clip is not installed here"
        return super().lacks() if self.pretrained is None or not self._downloaded(self.pretrained) else None

    def _downloaded(self, tag: str) -> bool:
        from huggingface_hub import try_to_load_from_cache

        torchvision.load()
        import open_clip

        repository = open_clip.get_pretrained_cfg(self.model, tag).get("hf_hub", "").rstrip("/")
        files = (open_clip.constants.HF_SAFE_WEIGHTS_NAME, open_clip.constants.HF_WEIGHTS_NAME)
        return any(isinstance(try_to_load_from_cache(repository, file), str) for file in files if repository)

    def load(self) -> tuple[torch.nn.Module, int, np.ndarray, np.ndarray]:
        """The text tower is built to load the weights file whole, and dropped."""
        torchvision.load()
        import open_clip

        model = open_clip.create_model(self.model, pretrained=self.pretrained)
        visual = model.visual
        config = visual.preprocess_cfg
        mean, std = (np.asarray(config[name], dtype=np.float32) for name in ("mean", "std"))
        return visual, visual.image_size[0] if isinstance(visual.image_size, tuple) else visual.image_size, mean, std

    def trunk(self, module: torch.nn.Module) -> torch.nn.Module:
        """The timm model inside OpenCLIP's EVA towers."""
        trunk: torch.nn.Module = module.get_submodule("trunk")
        return trunk

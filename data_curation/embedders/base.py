"""What an embedder is, and what all of them share: preprocessing, pooling, and saying where the weights are from."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import PositiveInt

from megavlm.platform.config import Config
from megavlm.platform.errors import ConfigError

if TYPE_CHECKING:
    import torch

RANDOM_WEIGHTS = "random weights (no pretrained model was given): features know near-identical images, no meaning"
GRID = 4  # side of the pooled token grid of `pooling: grid`


@dataclasses.dataclass(frozen=True)
class Embedding:
    """What an embedder builds: uint8 images [H, W, 3] -> float32 features [n, d], in two steps."""

    prepare: Callable[[np.ndarray], np.ndarray]  # of each image, an array of one shape for all; may run in threads
    forward: Callable[[np.ndarray], np.ndarray]  # of the prepared ones, stacked

    def __call__(self, images: Sequence[np.ndarray]) -> np.ndarray:
        """Both steps."""
        return self.forward(np.stack([self.prepare(image) for image in images]))


class Embedder(Config):
    """uint8 images [H, W, 3] -> unit-free features [d]. Torch is imported when `build` is called."""

    name: str
    model: str
    pretrained: str | None = None  # path of a local weights file, or a name the library knows; null: random weights
    resize: Literal["center_crop", "squash"] = "center_crop"
    pooling: Literal["model", "grid"] = "model"  # the model's own embedding, or its tokens averaged to a 4 x 4 grid
    batch_size: PositiveInt = 32
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["auto", "float32", "bfloat16"] = "auto"  # auto: bfloat16 on a GPU; a CPU is slower with it
    runtime: Literal["torch", "openvino"] = "torch"  # OpenVINO: on a CPU, with `pooling: model`

    def build(self, seed: int) -> tuple[Embedding, dict[str, Any]]:
        """The embedding, and notes for the ledger (model, weights, parameters, dimension)."""
        import torch

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)  # random weights are the same in every worker
            module, size, mean, std = self.load()
        forward = self._forward(module.eval(), size)
        looked_at = functools.partial(prepare, size=size, resize=self.resize, mean=mean, std=std)
        return Embedding(looked_at, forward), self._notes(module, size)

    def _forward(self, module: torch.nn.Module, size: int) -> Callable[[np.ndarray], np.ndarray]:
        """Pixels float32 [n, 3, size, size] -> features float32 [n, d]."""
        import torch

        if self.runtime == "openvino":
            return self._openvino(module, size)
        device = self._device()
        module = module.to(device)
        model = module if self.pooling == "model" else grid_pooling(self.trunk(module))
        half = self.precision == "bfloat16" or (self.precision == "auto" and device == "cuda")

        @torch.inference_mode()
        def forward(pixels: np.ndarray) -> np.ndarray:
            with torch.autocast(device, torch.bfloat16, enabled=half):
                return model(torch.from_numpy(pixels).to(device)).float().cpu().numpy()

        return forward

    def _openvino(self, module: torch.nn.Module, size: int) -> Callable[[np.ndarray], np.ndarray]:
        """The same by OpenVINO, in float32."""
        import torch

        if self.pooling != "model" or self.device == "cuda":
            raise ConfigError(
                f"openvino with pooling '{self.pooling}' on device '{self.device}'",
                where="curation.stages.embed.embedder.runtime",
                fix="use `pooling: model` on the CPU, or `runtime: torch`",
            )
        try:
            import openvino
        except ImportError:
            where = "curation.stages.embed.embedder.runtime"
            raise ConfigError("openvino is not installed", where=where, fix="pip install openvino") from None
        with torch.inference_mode():
            model = openvino.convert_model(module, example_input=torch.zeros(2, 3, size, size))
        # as many threads as torch would take: by itself it takes every core, in each worker
        how = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
        compiled = openvino.compile_model(model, "CPU", how)
        return lambda pixels: np.asarray(compiled(pixels)[0], dtype=np.float32)

    def lacks(self) -> str | None:
        """What is not on this machine; nothing is fetched to find out. None when the model can be built."""
        if self.pretrained is None or Path(self.pretrained).is_file():
            return None
        return f"there are no weights '{self.pretrained}' here"

    def load(self) -> tuple[torch.nn.Module, int, np.ndarray, np.ndarray]:
        """The module (images [n, 3, H, W] -> [n, d]), its input side in pixels, the channels' mean and deviation."""
        raise NotImplementedError

    def trunk(self, module: torch.nn.Module) -> torch.nn.Module:
        """The timm vision transformer inside `module`, for `pooling: grid`."""
        raise NotImplementedError

    def _device(self) -> str:
        import torch

        return ("cuda" if torch.cuda.is_available() else "cpu") if self.device == "auto" else self.device

    def _notes(self, module: torch.nn.Module, size: int) -> dict[str, Any]:
        return {
            "model": f"{self.name}:{self.model}",
            "weights": self.pretrained or RANDOM_WEIGHTS,
            "pretrained": self.pretrained is not None,
            "image_size": size,
            "parameters": sum(parameter.numel() for parameter in module.parameters()),
        }


def prepare(image: np.ndarray, size: int, resize: str, mean: np.ndarray, std: np.ndarray) -> np.ndarray:
    """uint8 [H, W, 3] -> normalised float32 [3, size, size], resized with Pillow's bicubic filter (as CLIP does)."""
    from PIL import Image

    height, width = image.shape[:2]
    side = min(height, width)
    left, top = ((width - side) / 2, (height - side) / 2) if resize == "center_crop" else (0, 0)
    box = (left, top, left + side, top + side) if resize == "center_crop" else (0, 0, width, height)
    square = Image.fromarray(image).resize((size, size), Image.Resampling.BICUBIC, box=box)
    values = np.array(square, dtype=np.float32)
    values /= 255.0
    values -= mean
    values /= std
    return np.ascontiguousarray(values.transpose(2, 0, 1), dtype=np.float32)


def grid_pooling(trunk: Any) -> Callable[[torch.Tensor], torch.Tensor]:
    """Patch tokens averaged to GRID x GRID cells and concatenated: [n, 3, H, W] -> [n, 16 * width].

    Unlike one pooled vector it keeps where things are, which is what an untrained network can still tell.
    """
    import torch

    def forward(pixels: torch.Tensor) -> torch.Tensor:
        tokens = trunk.forward_features(pixels)[:, trunk.num_prefix_tokens :]
        rows, columns = trunk.patch_embed.grid_size
        maps = tokens.transpose(1, 2).unflatten(2, (rows, columns))
        return torch.nn.functional.adaptive_avg_pool2d(maps, GRID).flatten(1)

    return forward

"""torchvision is importable on CPU torch, and so is what imports it."""

from __future__ import annotations

import subprocess
import sys

CODE = """
from megavlm.kernels import torchvision
loaded = torchvision.load()
assert torchvision.load() is loaded
import torch, timm, open_clip
from torchvision.transforms import v2
image = torch.arange(48, dtype=torch.float32).reshape(1, 3, 4, 4)
assert torch.equal(v2.functional.center_crop(image, [2, 2]), image[:, :, 1:3, 1:3])
assert torch.ops.torchvision.nms is not None
"""


def test_a_fresh_process_loads_torchvision_timm_and_open_clip():
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr

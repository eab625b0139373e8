"""megatron-core comes without what it never uses here, and whoever asks for that afterwards gets the real thing."""

from __future__ import annotations

import json
import subprocess
import sys

CODE = """
import json, sys
import torch
compiler = torch.compile
from megavlm.megatron_mm import backend
backend.init_distributed
inductor = "torch._inductor.compile_fx" in sys.modules and not torch.cuda.is_available()
told = {"core": "megatron.core" in sys.modules, "wandb": "wandb" in sys.modules, "inductor": inductor}
told["compiler"] = torch.compile is compiler
told["hidden"] = sys.modules.get("wandb", "absent") is None
print(json.dumps(told))
"""


def test_what_is_loaded_and_what_is_put_back() -> None:
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, timeout=120)
    told = json.loads(done.stdout.splitlines()[-1])
    assert told == {"core": True, "wandb": False, "inductor": False, "compiler": True, "hidden": False}, done.stderr

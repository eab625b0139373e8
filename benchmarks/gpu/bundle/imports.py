"""Whether everything that the GPU machine is to run imports, and from the bundle where it is carried. Needs no GPU."""

from __future__ import annotations

import importlib
import json
import os
import sys
from importlib.metadata import version
from pathlib import Path

CARRIED = (
    "annotated_types", "importlib_metadata", "megatron.core", "pydantic", "pydantic_core", "simplejpeg",
    "transformer_engine", "transformer_engine.pytorch", "transformer_engine_torch", "typing_extensions",
    "typing_inspection",
)  # fmt: skip
OURS = (
    "megavlm.kernels.merge_tokens", "megavlm.megatron_mm.backend.te_attention", "megavlm.megatron_mm.model",
    "megavlm.megatron_mm.training.loop", "megavlm.megatron_mm.training.step", "megavlm.platform.cli",
)  # fmt: skip


def main() -> int:
    import torch  # first: Transformer Engine's library finds CUDA's among those that torch has loaded

    os.environ.setdefault("TRITON_INTERPRET", "0" if torch.cuda.is_available() else "1")
    site = Path(os.environ.get("MEGAVLM_UNPACK", "/tmp/megavlm-gpu")) / "site"
    problems = [problem for name in CARRIED if (problem := _problem(name, site))]
    problems += [problem for name in OURS if (problem := _problem(name))]
    if not problems and not importlib.import_module("megatron.core.fp8_utils").HAVE_TE:
        problems.append("megatron-core does not see Transformer Engine")
    if not problems:
        spec = importlib.import_module("megatron.core.models.gpt.gpt_layer_specs")
        spec.get_gpt_layer_with_transformer_engine_spec()
    names = ("torch", "megatron-core", "transformer-engine", "transformer-engine-cu13", "transformer-engine-torch")
    about = {"python": sys.version.split()[0], "cuda": torch.cuda.is_available()} | {
        name: version(name) for name in names
    }
    print(json.dumps({"imports": not problems, "problems": problems, **about}))
    return 3 if problems else 0


def _problem(name: str, inside: Path | None = None) -> str | None:
    """What is wrong with importing `name`, or with where it came from."""
    try:
        module = importlib.import_module(name)
    except Exception as error:  # a library that does not load raises what it likes
        return f"{name}: {type(error).__name__}: {error}"
    place = Path(getattr(module, "__file__", None) or next(iter(module.__path__)))
    if inside is not None and not place.resolve().is_relative_to(inside.resolve()):
        return f"{name} comes from {place}, not from the bundle"
    return None


if __name__ == "__main__":
    sys.exit(main())

"""Imports on three layouts: the published classes' logits and features, and exports of what each layout saved."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import load_file

from megavlm.megatron_mm import backend
from megavlm.megatron_mm.checkpoints.listing import checkpoint_path
from megavlm.megatron_mm.conversion import FORMATS
from megavlm.megatron_mm.conversion.exporting import plan_export, write_export
from megavlm.megatron_mm.conversion.importing import Source, plan_import, write_import
from megavlm.megatron_mm.conversion.published import Published
from megavlm.platform.runs import RunFolder

pytestmark = [pytest.mark.multiprocess, pytest.mark.timeout(180)]
NAMES = [
    "qwen2, internvit",
    "llama 3.1, internvit with dummy heads",
    "yi, internvit 300M",
    "vicuna, clip",
    "qwen2 tied, siglip",
]
CASES = pytest.mark.parametrize("number", range(5), ids=NAMES)
LAYOUTS = pytest.mark.parametrize("layout", ["tp1", "tp2", "pp2"])


@pytest.fixture(scope="module")
def folder(
    tmp_path_factory: pytest.TempPathFactory,
    worker: ModuleType,
    publish_language: Callable[..., torch.nn.Module],
    publish_vision: Callable[..., torch.nn.Module],
    on_ranks: Callable[..., None],
) -> Path:
    """case-N/{language,vision}: what was published; import: the checkpoint; tp1, tp2, pp2: what the layouts told."""
    assert list(worker.CASES) == NAMES and list(worker.LAYOUTS) == ["tp1", "tp2", "pp2"]
    folder = tmp_path_factory.mktemp("conversion")
    torch.set_num_threads(1)
    for number, case in enumerate(NAMES):
        publish(folder / f"case-{number}", worker, case, publish_language, publish_vision)
    backend.shutdown()
    on_ranks(Path(str(worker.__file__)), 2, folder, seconds=150)
    return folder


def publish(
    home: Path,
    worker: ModuleType,
    case: str,
    publish_language: Callable[..., torch.nn.Module],
    publish_vision: Callable[..., torch.nn.Module],
) -> None:
    """Both models, what they say, and the import of both."""
    model = worker.model_config(case)
    language, vision = publish_language(model, home / "language"), publish_vision(model, home / "vision")
    of = model.encoder
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (of.mean, of.std))
    with torch.no_grad():
        states = vision((worker.tiles() / 255 - mean) / std, output_hidden_states=True)
        last = of.name in {"internvit", "siglip"}
        seen = states.last_hidden_state if last else states.hidden_states[of.layer]
        torch.save({"logits": language(worker.tokens()).logits[0], "features": seen}, home / "wanted.pt")
    formats = {"language": model.decoder.name, "vision": of.name}
    sources = [Published(home / name) for name in formats]
    kinds = [FORMATS.load(name)() for name in formats.values()]
    plan = plan_import(model, [Source(p, f, list(f.maps)) for p, f in zip(sources, kinds, strict=True)])
    write_import(plan, RunFolder(home / "import"), worker.STAGE)


@CASES
@LAYOUTS
def test_says_and_sees_what_was_published(folder: Path, number: int, layout: str) -> None:
    wanted = torch.load(folder / f"case-{number}" / "wanted.pt", weights_only=True)
    told = load_file(folder / f"case-{number}" / layout / "told.safetensors")
    vocab = wanted["logits"].shape[-1]
    torch.testing.assert_close(told["logits"][:, :vocab], wanted["logits"], rtol=1e-5, atol=1e-5)
    has_class_token = wanted["features"].shape[1] % 2
    features = wanted["features"][:, has_class_token:].flatten(0, 1)
    torch.testing.assert_close(told["features"], features, rtol=1e-5, atol=1e-5)


@CASES
@LAYOUTS
def test_what_a_layout_saved_is_exported_as_it_was_published(
    folder: Path,
    worker: ModuleType,
    stage_of: Callable[..., object],
    tmp_path: Path,
    number: int,
    layout: str,
) -> None:
    home, spec = folder / f"case-{number}", stage_of(worker.CASES[NAMES[number]], tmp_path)
    for part, name in {"language": spec.model.decoder.name, "vision": spec.model.encoder.name}.items():
        checkpoint = checkpoint_path(RunFolder(home / layout), worker.STAGE, 1)
        write_export(plan_export(FORMATS.load(name)(), spec, checkpoint, 30_000), tmp_path / part)
        published, exported = tensors(home / part), tensors(tmp_path / part)
        unread = {"vision_model.post_layernorm", "vision_model.encoder.layers.2", "vision_model.head"}
        left = {key for key in published if name == "clip" and key.startswith(tuple(unread))}
        left |= {key for key in published if name == "siglip" and ".head." in key}
        assert set(exported) == set(published) - left
        assert all(torch.equal(exported[key], published[key]) for key in exported)
    backend.shutdown()


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {name: t for file in folder.glob("*.safetensors") for name, t in load_file(file).items()}

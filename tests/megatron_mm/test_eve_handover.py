"""What the curation recipe eve-cap33m exports is what EVE's stages read: no step between."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from megavlm.megatron_mm.checkpoints.listing import latest
from megavlm.megatron_mm.data.build import StageData
from megavlm.megatron_mm.data.loader import open_loader
from megavlm.megatron_mm.training.packs import ensure_packs
from megavlm.megatron_mm.training.stages import unfinished
from megavlm.platform.cli import main
from megavlm.platform.config import load_recipe
from megavlm.platform.runs import RunFolder
from megavlm.platform.shards import ShardWriter

WORKER = Path(__file__).with_name("eagle_minis_worker.py")  # trains the stages it is told
TOKENIZERS = Path(__file__).parent / "data" / "templates" / "fixtures" / "tokenizers"
# Width, height and caption of the pictures of each part; the last part has one that is too small.
PARTS = {
    "sa1b": [(460, 500, "A red kite over the sea."), (700, 460, "Two boats.")],
    "openimages": [(460, 460, "A dog asleep on a green sofa.")],
    "laion": [(900, 450, "A long wall with a blue door."), (449, 449, "A cup."), (300, 300, "Too small.")],
}
SIZES = [(672, 644), (448, 672), (672, 672), (336, 672)]  # height and width of them at 672 px; two are square


def picture(seed: int, width: int, height: int) -> bytes:
    noise = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The export of eve-cap33m itself, over parts of a few pictures."""
    root = tmp_path_factory.mktemp("cap33m")
    for number, (part, pictures) in enumerate(PARTS.items()):
        with ShardWriter(root / part) as writer:
            for k, (width, height, caption) in enumerate(pictures):
                fields = {"jpg": picture(10 * number + k, width, height), "txt": caption, "json": {}}
                writer.write(f"{k:04d}", fields)
    words = [
        f"curation.source.path={root}", *(f"curation.source.parts.{part}={part}" for part in PARTS),
        "curation.stages.decontaminate=null", "curation.executor={name: in_process}",
    ]  # fmt: skip
    assert main(["curate", "run", "eve-cap33m", *words, "--out", str(root / "run")]) == 0
    return root / "run" / "export"


def run_of(name: str, words: list[str], out: Path) -> tuple[RunFolder, StageData]:
    """A run folder with the packs of a recipe's stage `prealign`."""
    recipe = load_recipe(name, words)
    run, spec = RunFolder.create(out, recipe.tree, recipe.origins, ["train"]), StageData.of(recipe, "prealign")
    ensure_packs(run, spec)
    return run, spec


def test_a_sample_is_its_image_and_its_caption(exported: Path, tmp_path: Path) -> None:
    """In eve-7b's own pre-alignment: `<s>`, the image's tokens, the caption and a newline, which are learnt."""
    words = [
        f"data.sets.eve-cap33m={exported}", f"data.tokenizer={TOKENIZERS / 'llama2'}",
        "stages.prealign.steps=1", "stages.prealign.mixture.batch.size=5",
    ]  # fmt: skip
    run, spec = run_of("eve-7b", words, tmp_path / "run")
    packs, tokenizer = ensure_packs(run, spec).batch(0), spec.tokenizer()
    entries = [entry for pack in packs for entry in pack.entries]
    sizes = {spec.model.tiling.size(*entry.images): entry.tokens - entry.targets for entry in entries}
    rows_and_columns = {size: (size[0] // 28, size[1] // 28) for size in SIZES}
    assert sizes == {size: 1 + rows * (columns + 1) + 1 for size, (rows, columns) in rows_and_columns.items()}
    learnt: list[str] = []
    for pack in open_loader(spec, ensure_packs(run, spec)).batch(0).packs:
        learnt += tokenizer.decode(pack.labels[0][pack.loss_weights[0] > 0].tolist()).splitlines()
    kept = [caption for part in PARTS.values() for *_, caption in part if caption != "Too small."]
    assert len(entries) == 5 and sorted(line.strip() for line in learnt) == sorted(kept)


@pytest.mark.multiprocess
@pytest.mark.timeout(200)
def test_a_mini_trains_on_it(exported: Path, tmp_path: Path, on_ranks: Callable[..., None]) -> None:
    words = [
        f"data.sets.pairs={exported}", "stages.prealign.after=[]", "stages.prealign.steps=2",
        "stages.prealign.template={name: plain, bos: ''}", "stages.prealign.evaluate=null",
        "stages.prealign.mixture={weights: {vqa: null, pairs: 1}, sequence_length: 256, packs_per_batch: 1}",
        "stages.prealign.parallel.tp=1",
        *(f"stages.{name}=null" for name in ("language", "pretrain", "sft", "hd", "gate")),
    ]  # fmt: skip
    run, _ = run_of("eve-mini", words, tmp_path / "run")
    on_ranks(WORKER, 1, run.root, "prealign", 0)
    assert [(line["step"], line["loss"] > 0) for line in run.metrics()] == [(1, True), (2, True)]
    assert latest(run, "prealign") and not unfinished(run, load_recipe(str(run.path("config.yaml"))).section("stages"))

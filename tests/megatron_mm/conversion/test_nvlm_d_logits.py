"""The exported files alone, computed as their consumers do, against our model: same tiles and tokens, same logits."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from megatron.core import dist_checkpointing
from safetensors.torch import load_file
from torch import Tensor

from megavlm.kernels import torchvision
from megavlm.megatron_mm import backend
from megavlm.megatron_mm.checkpoints.listing import COMPLETE, checkpoint_path
from megavlm.megatron_mm.config import AXES, Parallel
from megavlm.megatron_mm.contracts import PackedBatch
from megavlm.megatron_mm.conversion.exporting import plan_export, write_export
from megavlm.megatron_mm.conversion.importing import Source, plan_import, write_import
from megavlm.megatron_mm.conversion.nvlm_d import NVLMD
from megavlm.megatron_mm.conversion.published import Published
from megavlm.megatron_mm.conversion.verb import format_of
from megavlm.megatron_mm.conversion.verifying import differences
from megavlm.megatron_mm.data.build import StageData
from megavlm.megatron_mm.model import VisionLanguageModel, build_model
from megavlm.platform.cli import main
from megavlm.platform.config import load_recipe
from megavlm.platform.runs import RunFolder
from megavlm.platform.storage import write_atomic

MEAN, STD = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
DUMMY_HEADS = 7


class Served:
    """NVLM-D over the files of an export, knowing nothing of ours: config.json's keys and the published names."""

    def __init__(self, folder: Path) -> None:
        torchvision.load()  # transformers imports it
        from transformers import Qwen2Config, Qwen2ForCausalLM

        self.config = json.loads((folder / "config.json").read_text())
        files = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
        self.w = {name: t for file in sorted(set(files.values())) for name, t in load_file(folder / file).items()}
        self.language = Qwen2ForCausalLM(Qwen2Config(**self.config["llm_config"])).float().eval()
        language = {n.removeprefix("language_model."): t for n, t in self.w.items() if n.startswith("language_model.")}
        self.language.load_state_dict(language, strict=True)

    @torch.no_grad()
    def logits(self, tokens: Tensor, tiles: Tensor, visual: Tensor) -> Tensor:
        """Token ids [n], uint8 tiles [k, 3, H, W], bool [n] where their tokens stand, in order -> [n, vocab]."""
        embeddings = self.language.model.embed_tokens(tokens)
        if len(tiles):
            embeddings[visual] = self._connect(self._see(tiles)).flatten(0, 1)
        return self.language(inputs_embeds=embeddings[None]).logits[0]

    def _see(self, tiles: Tensor) -> Tensor:
        of, w = self.config["vision_config"], "vision_model.embeddings."
        patches = F.conv2d(
            (tiles / 255 - MEAN) / STD, self.w[w + "patch_embedding.weight"], self.w[w + "patch_embedding.bias"],
            stride=of["patch_size"],
        )  # fmt: skip
        x = torch.cat([self.w[w + "class_embedding"].expand(len(tiles), 1, -1), patches.flatten(2).mT], dim=1)
        x = x + self.w[w + "position_embedding"]
        for layer in range(of["num_hidden_layers"]):
            prefix = f"vision_model.encoder.layers.{layer}."
            p = {name.removeprefix(prefix): t for name, t in self.w.items() if name.startswith(prefix)}
            x = x + p["ls1"] * self._attend(p, self._rms(x, p["norm1.weight"]))
            hidden = F.linear(self._rms(x, p["norm2.weight"]), p["mlp.fc1.weight"], p["mlp.fc1.bias"])
            x = x + p["ls2"] * F.linear(F.gelu(hidden), p["mlp.fc2.weight"], p["mlp.fc2.bias"])
        return x[:, 1:]

    def _attend(self, p: dict[str, Tensor], x: Tensor) -> Tensor:
        """The real heads first, then the dummy ones; the rows of qkv are queries, keys, values, each head by head."""
        heads = self.config["vision_config"]["num_attention_heads"]
        dim = self.config["vision_config"]["hidden_size"] // heads
        q, k, v = F.linear(x, p["attn.qkv.weight"]).chunk(3, dim=-1)
        q, k = self._rms(q, p["attn.q_norm.weight"]), self._rms(k, p["attn.k_norm.weight"])
        q, k, v = (t.unflatten(-1, (heads + DUMMY_HEADS, dim)).transpose(1, 2) for t in (q, k, v))
        mixed = (q @ k.mT / dim**0.5).softmax(-1) @ v
        return F.linear(mixed.transpose(1, 2).flatten(2), p["attn.proj.weight"], p["attn.proj.bias"])

    def _rms(self, x: Tensor, weight: Tensor) -> Tensor:
        """The mean square is taken over the trained channels, also where dummy ones follow."""
        of = self.config["vision_config"]
        squares = x[..., : of["hidden_size"]].square().mean(-1, keepdim=True)
        return x * torch.rsqrt(squares + of["layer_norm_eps"]) * weight

    def _connect(self, patches: Tensor) -> Tensor:
        """Pixel shuffle by its two published transpositions, then LayerNorm with torch's own eps, and the MLP."""
        n, (side, c) = len(patches), (int(patches.shape[1] ** 0.5), patches.shape[2])
        x = patches.view(n, side, side // 2, 2 * c).permute(0, 2, 1, 3)
        x = x.reshape(n, side // 2, side // 2, 4 * c).permute(0, 2, 1, 3).reshape(n, -1, 4 * c)
        x = F.layer_norm(x, (4 * c,), self.w["mlp1.0.weight"], self.w["mlp1.0.bias"])  # eps 1e-5
        return F.linear(F.gelu(F.linear(x, self.w["mlp1.1.weight"])), self.w["mlp1.3.weight"])


RECIPE = """
model:
  tiling: {tile: 56, max_tiles: 4}
  encoder: {name: internvit, image_size: 56, layers: 3, hidden: 72, heads: 9, dummy_heads: 7, ffn: 96}
  connector: {name: pixel_shuffle_mlp, hidden: 80, norm_eps: 1.0e-5}
  injection: {name: inline, tags: 1d}
  decoder: {name: qwen2, layers: 3, hidden: 64, heads: 4, kv_heads: 2, ffn: 80, vocab: 520, max_positions: 512}
data: {tokenizer: mini, template: {name: chatml, image_start: <Image>, image_end: </Image>}, sets: {pairs: somewhere}}
stages:
  sft:
    {train: [decoder], steps: 1, precision: fp32, optimizer: {lr: 1e-3},
     mixture: {weights: {pairs: 1}, sequence_length: 512, packs_per_batch: 1}}
"""
EACH, TILES = 4, 3  # visual tokens of a tile; two tiles and a thumbnail


class Made(NamedTuple):
    """A run whose checkpoint was exported, the export, and the prompts with what our model said to them."""

    run: RunFolder
    exported: Path
    pack: PackedBatch
    logits: Tensor  # [n, vocab]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Made]:
    """Random weights, written as training writes them, and exported in shards of 64 KB."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("nvlm-d")
    (folder / "nvlm.yaml").write_text(RECIPE)
    recipe = load_recipe(str(folder / "nvlm.yaml"))
    run = RunFolder.create(folder / "run", recipe.tree, recipe.origins, [])
    spec = StageData.of(recipe, "sft")
    backend.init_distributed(Parallel(), seed=1)
    model = build_model(spec.model, backend.build_context(Parallel(), "fp32"))
    draw(model)
    with torch.no_grad():
        logits = model(pack(), gather_logits=True)[0]
    checkpoint = checkpoint_path(run, "sft", 1)
    checkpoint.mkdir(parents=True)
    dist_checkpointing.save(model.sharded_state_dict(), str(checkpoint))
    write_atomic(checkpoint / COMPLETE, json.dumps({"stage": "sft", "step": 1, "parts": list(AXES)}).encode())
    write_export(plan_export(NVLMD(), spec, checkpoint, max_shard=64_000), folder / "exported")
    yield Made(run, folder / "exported", pack(), logits)
    backend.shutdown()


@torch.no_grad()
def draw(model: VisionLanguageModel) -> None:
    """Weights far from their first values; those of dummy heads stay zero, as training leaves them."""
    backend.initialise(model, seed=3)
    noise = torch.Generator().manual_seed(4)
    for p in model.parameters():
        padded = hasattr(p, "init_shape")
        p.add_(torch.randn(p.shape, generator=noise) * 0.1 * ((p != 0) if padded else 1))


def pack() -> PackedBatch:
    """Two prompts: one of text, and one with an image of two tiles and a thumbnail, tags between them."""
    draw, lengths = torch.Generator().manual_seed(5), (11, 40)
    starts = [lengths[0] + 3 + tile * (EACH + 2) for tile in range(TILES)]
    return PackedBatch(
        tokens=torch.randint(0, 512, (1, sum(lengths)), generator=draw),
        labels=None,
        loss_weights=torch.zeros(1, sum(lengths)),
        position_ids=torch.cat([torch.arange(n) for n in lengths])[None],
        cu_seqlens=torch.tensor([0, *lengths]).cumsum(0).int(),
        tiles=torch.randint(0, 256, (TILES, 3, 56, 56), generator=draw, dtype=torch.uint8),
        visual_index=torch.tensor([start + k for start in starts for k in range(EACH)]),
    )


def test_the_files_hold_what_is_asked_for_under_an_index(made: Made) -> None:
    index = json.loads((made.exported / "model.safetensors.index.json").read_text())
    files = sorted(set(index["weight_map"].values()))
    count = len(files)
    assert count > 3 and files == [f"model-{k:05d}-of-{count:05d}.safetensors" for k in range(1, count + 1)]
    held = {name: file for file in files for name in load_file(made.exported / file)}
    assert held == index["weight_map"]


def test_dummy_heads_are_last_and_zero(made: Made) -> None:
    w = Served(made.exported).w
    for layer in range(3):
        prefix = f"vision_model.encoder.layers.{layer}.attn."
        q, k, v = w[prefix + "qkv.weight"].chunk(3)
        dummies = [q[72:], k[72:], v[72:], w[prefix + "proj.weight"][:, 72:]]
        dummies += [w[prefix + "q_norm.weight"][72:], w[prefix + "k_norm.weight"][72:]]
        assert [len(q), *(int(part.count_nonzero()) for part in dummies)] == [128, 0, 0, 0, 0, 0, 0]
        assert all(part[:72].count_nonzero() > 72 * 60 for part in (q, k, v))


def test_a_consumers_logits_are_ours(made: Made) -> None:
    """One prompt of text alone, one with two tiles and a thumbnail; in float32."""
    served, batch = Served(made.exported), made.pack
    visual = torch.zeros(batch.length, dtype=torch.bool)
    visual[batch.visual_index] = True
    text, image = slice(0, 11), slice(11, 51)
    assert not visual[text].any() and int(visual[image].sum()) == TILES * EACH
    said = [
        served.logits(batch.tokens[0, text], batch.tiles[:0], visual[text]),
        served.logits(batch.tokens[0, image], batch.tiles, visual[image]),
    ]
    assert float(made.logits.abs().max()) > 1
    torch.testing.assert_close(made.logits, torch.cat(said), rtol=0, atol=1e-5)


def test_an_import_and_another_export_change_no_bit(made: Made, tmp_path: Path) -> None:
    recipe = load_recipe(str(made.run.path("config.yaml")))
    spec = StageData.of(recipe, "sft")
    plan = plan_import(spec.model, [Source(Published(made.exported), NVLMD(), list(NVLMD.maps))])
    run = RunFolder.create(tmp_path / "start", recipe.tree, recipe.origins, [])
    checkpoint = write_import(plan, run, "sft")
    assert list(differences(plan, checkpoint)) == []
    write_export(plan_export(NVLMD(), spec, checkpoint, max_shard=64_000), tmp_path / "again")
    names = sorted(path.name for path in made.exported.iterdir())
    assert sorted(path.name for path in (tmp_path / "again").iterdir()) == names
    for name in names:
        assert (tmp_path / "again" / name).read_bytes() == (made.exported / name).read_bytes()


def test_it_is_known_by_its_architecture(made: Made) -> None:
    assert isinstance(format_of(Published(made.exported), None), NVLMD)


def test_the_command_writes_what_it_says(made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In bfloat16, as the release is; in one file, which needs no index."""
    command = ["convert", "export", str(made.run.path("config.yaml").parent), "--format", "nvlm_d", "--json"]
    assert main([*command, "--dtype", "bfloat16", "--out", str(tmp_path / "out")]) == 0
    told = json.loads(capsys.readouterr().out)
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (told["files"], told["tensors"], told["dtype"]) == (["model.safetensors"], len(tensors), "bfloat16")
    assert {t.dtype for t in tensors.values()} == {torch.bfloat16}
    said = [config[key]["torch_dtype"] for key in ("llm_config", "vision_config")]
    assert [config["torch_dtype"], *said] == ["bfloat16"] * 3

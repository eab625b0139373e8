"""The embedders on their real libraries, at the smallest size; weights are random unless a file is given."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from megavlm.data_curation.embedders.base import RANDOM_WEIGHTS, prepare
from megavlm.data_curation.embedders.open_clip_model import OpenClip
from megavlm.data_curation.embedders.pixels import Pixels
from megavlm.data_curation.embedders.timm_model import Timm
from megavlm.kernels import torchvision
from megavlm.platform.errors import ConfigError

TINY = {"model": "eva02_tiny_patch14_224", "image_size": 56}


@pytest.fixture
def images(tools):
    return [np.asarray(tools.photo(seed, 90, 70)) for seed in range(3)]


def test_timm_grid_pooling_is_the_mean_of_each_sixteenths_tokens(images):
    import torch

    embed, notes = Timm(**TINY, pooling="grid", resize="squash").build(seed=5)
    features = embed(images)
    torch.manual_seed(5)
    import timm

    model = timm.create_model(TINY["model"], pretrained=False, num_classes=0, img_size=56).eval()
    mean, std = np.array(model.pretrained_cfg["mean"]), np.array(model.pretrained_cfg["std"])
    pixels = [
        (np.asarray(Image.fromarray(i).resize((56, 56), Image.Resampling.BICUBIC)) / 255 - mean) / std for i in images
    ]
    with torch.inference_mode():
        tokens = model.forward_features(torch.tensor(np.stack(pixels), dtype=torch.float32).permute(0, 3, 1, 2))
    grid = tokens[:, 1:].reshape(3, 4, 4, 192)  # 56 / 14 = 4: each cell of the grid is one token
    wanted = grid.permute(0, 3, 1, 2).reshape(3, -1).numpy()
    assert np.allclose(features, wanted, atol=1e-4)
    assert notes["weights"] == RANDOM_WEIGHTS and notes["pretrained"] is False


def test_the_seed_decides_random_weights_and_leaves_torchs_own_alone(images):
    import torch

    state = torch.random.get_rng_state()
    first, again, other = (Timm(**TINY).build(seed)[0](images) for seed in (1, 1, 2))
    assert np.array_equal(first, again) and not np.allclose(first, other)
    assert torch.equal(state, torch.random.get_rng_state())


def test_timm_loads_a_weights_file(images, tmp_path):
    import timm
    import torch

    torch.manual_seed(77)
    model = timm.create_model(TINY["model"], pretrained=False, num_classes=0, img_size=56)
    path = tmp_path / "weights.pth"
    torch.save(model.state_dict(), path)
    embed, notes = Timm(**TINY, pretrained=str(path)).build(seed=1)
    wanted, _ = Timm(**TINY).build(seed=77)
    assert np.allclose(embed(images), wanted(images), atol=1e-6)
    assert notes["weights"] == str(path) and notes["pretrained"] is True


def test_open_clip_eva_tower_loads_a_weights_file(images, tmp_path):
    torchvision.load()
    import open_clip
    import torch

    config = {
        "embed_dim": 32,
        "vision_cfg": {
            "image_size": 224,
            "timm_model_name": TINY["model"],
            "timm_pool": "token",
            "timm_proj": "linear",
        },
        "text_cfg": {"context_length": 8, "vocab_size": 64, "width": 32, "heads": 2, "layers": 1},
    }
    (tmp_path / "EVA02-Ti-test.json").write_text(json.dumps(config))
    open_clip.add_model_config(tmp_path / "EVA02-Ti-test.json")
    torch.manual_seed(3)
    whole = open_clip.create_model("EVA02-Ti-test")
    torch.save(whole.state_dict(), tmp_path / "clip.pt")
    embed, notes = OpenClip(model="EVA02-Ti-test", pretrained=str(tmp_path / "clip.pt")).build(seed=1)
    mean, std = (np.array(whole.visual.preprocess_cfg[name], dtype=np.float32) for name in ("mean", "std"))
    pixels = np.stack([prepare(image, 224, "center_crop", mean, std) for image in images])
    with torch.inference_mode():
        wanted = whole.eval().encode_image(torch.from_numpy(pixels)).numpy()
    assert np.allclose(embed(images), wanted, atol=1e-5)
    grid, _ = OpenClip(model="EVA02-Ti-test", pooling="grid").build(seed=1)
    assert grid(images).shape == (3, 16 * 192) and notes["image_size"] == 224


def test_a_pickle_that_runs_code_is_refused(images, tmp_path):
    import os
    import pickle

    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    (tmp_path / "evil.pth").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(Exception, match=r"(?i)weights"):
        Timm(**TINY, pretrained=str(tmp_path / "evil.pth")).build(seed=1)
    assert not (tmp_path / "ran").exists()


def test_center_crop_is_pillows_crop_and_resize(tools):
    image = tools.photo(3, 100, 60)
    out = prepare(np.asarray(image), 30, "center_crop", np.zeros(3, np.float32), np.ones(3, np.float32))
    wanted = np.asarray(image.resize((30, 30), Image.Resampling.BICUBIC, box=(20, 0, 80, 60)), np.float32) / 255
    assert np.allclose(out.transpose(1, 2, 0), wanted)


def test_pixels_are_block_means():
    image = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    features = Pixels(side=8).build(1)[0]([image])
    means = image.reshape(8, 2, 8, 2, 3).mean(axis=(1, 3)) / 255
    assert np.allclose(features.reshape(8, 8, 3), means, atol=1 / 255)


def test_bfloat16_is_near_to_float32(images):
    exact, half = (Timm(**TINY, precision=precision).build(1)[0](images) for precision in ("float32", "bfloat16"))
    assert half.dtype == np.float32 and not np.array_equal(exact, half)
    cosines = (exact * half).sum(axis=1) / np.linalg.norm(exact, axis=1) / np.linalg.norm(half, axis=1)
    assert (cosines > 0.99).all()


def test_openvino_gives_what_torch_does(images):
    pytest.importorskip("openvino")
    torch_, openvino = (Timm(**TINY, runtime=runtime).build(1)[0](images) for runtime in ("torch", "openvino"))
    assert openvino.shape == torch_.shape and np.allclose(openvino, torch_, atol=1e-4)


def test_openvino_with_grid_pooling_is_refused():
    with pytest.raises(ConfigError, match="openvino"):
        Timm(**TINY, runtime="openvino", pooling="grid").build(1)

"""Published weights are read without trusting them: what they are refused for, and that nothing in them runs."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from megavlm.megatron_mm.conversion.published import Published
from megavlm.platform.errors import InputError

TENSORS = {"a": torch.arange(6.0).view(2, 3), "b": torch.ones(4, dtype=torch.bfloat16), "c": torch.zeros(1)}


class Runs:
    """What a pickle can do when it is loaded."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.mark),)


def index(folder: Path, weight_map: object, name: str = "model.safetensors.index.json") -> None:
    (folder / name).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def test_shards_of_safetensors_and_of_bin(tmp_path: Path) -> None:
    for kind, write in {"safetensors": save_file, "bin": torch.save}.items():
        folder = tmp_path / kind
        folder.mkdir()
        write({"a": TENSORS["a"]}, folder / f"x-1.{kind}")
        write({"b": TENSORS["b"], "c": TENSORS["c"]}, folder / f"x-2.{kind}")
        stem = {"safetensors": "model.safetensors", "bin": "pytorch_model.bin"}[kind]
        where = {"a": f"x-1.{kind}", "b": f"x-2.{kind}", "c": f"x-2.{kind}"}
        index(folder, where, f"{stem}.index.json")
        found = Published(folder)
        assert {name: (entry.shape, entry.dtype) for name, entry in found.tensors.items()} == {
            "a": ((2, 3), "float32"), "b": ((4,), "bfloat16"), "c": ((1,), "float32"),
        }  # fmt: skip
        assert all(torch.equal(found.read(name), tensor) for name, tensor in TENSORS.items())


def test_one_file_and_a_folder_without_index(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "model.safetensors")
    assert set(Published(tmp_path).tensors) == set(Published(tmp_path / "model.safetensors").tensors) == set(TENSORS)


@pytest.mark.parametrize("name", ["../out.safetensors", "/etc/passwd", "sub/../../out.safetensors", "..", "", "x\0y"])
def test_an_index_stays_in_its_folder(tmp_path: Path, name: str) -> None:
    (tmp_path / "in").mkdir()
    save_file(TENSORS, tmp_path / "out.safetensors")
    index(tmp_path / "in", {"a": name})
    with pytest.raises(InputError, match="leads out of its folder"):
        Published(tmp_path / "in")


def test_a_link_out_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    save_file(TENSORS, tmp_path / "out.safetensors")
    (tmp_path / "in" / "x.safetensors").symlink_to(tmp_path / "out.safetensors")
    index(tmp_path / "in", {"a": "x.safetensors"})
    with pytest.raises(InputError, match="through a link"):
        Published(tmp_path / "in")


@pytest.mark.parametrize("weight_map", [None, [], {"a": 3}, {"a": {"b": "c"}}])
def test_an_index_that_is_none(tmp_path: Path, weight_map: object) -> None:
    index(tmp_path, weight_map)
    with pytest.raises(InputError, match="weight_map"):
        Published(tmp_path)


def test_an_index_of_what_is_not_there(tmp_path: Path) -> None:
    index(tmp_path, {"a": "gone.safetensors"})
    with pytest.raises(InputError, match=r"gone\.safetensors"):
        Published(tmp_path)


@pytest.mark.parametrize("text", [b"", b"[]", b"{", b"\xff\xfe"])
def test_a_config_that_is_none(tmp_path: Path, text: bytes) -> None:
    save_file(TENSORS, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_bytes(text)
    with pytest.raises(InputError, match=r"JSON") as raised:
        Published(tmp_path)
    assert raised.value.where == str(tmp_path / "config.json")


@pytest.mark.parametrize("nested", [False, True])
def test_a_pickle_does_not_run(tmp_path: Path, nested: bool) -> None:
    mark = tmp_path / "it-ran"
    harm = Runs(mark)
    torch.save({"a": TENSORS["a"], "b": [harm] if nested else harm}, tmp_path / "pytorch_model.bin")
    with pytest.raises(InputError, match=r"loading it would call \w+\.mkdir"):
        Published(tmp_path)
    assert not mark.exists()


@pytest.mark.parametrize("held", [[1, 2], {"a": 3}, {"model": {"a": torch.zeros(1)}}])
def test_a_bin_of_something_else(tmp_path: Path, held: object) -> None:
    torch.save(held, tmp_path / "pytorch_model.bin")
    with pytest.raises(InputError, match="something else than tensors"):
        Published(tmp_path)


@pytest.mark.parametrize("keep", [0, 7, 60, -3])
def test_a_damaged_file(tmp_path: Path, keep: int) -> None:
    for name, write in (("model.safetensors", save_file), ("pytorch_model.bin", torch.save)):
        file = tmp_path / str(keep) / name.partition(".")[0] / name
        file.parent.mkdir(parents=True)
        write(TENSORS, file)
        file.write_bytes(file.read_bytes()[:keep])
        with pytest.raises(InputError) as raised:
            Published(file.parent)
        assert raised.value.where == str(file)


def test_a_name_in_two_files(tmp_path: Path) -> None:
    for name in ("x.safetensors", "y.safetensors"):
        save_file(TENSORS, tmp_path / name)
    with pytest.raises(InputError, match="'a' stands in two files"):
        Published(tmp_path)


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no weights at"):
        Published(tmp_path / "gone")
    with pytest.raises(InputError, match=r"no \*\.safetensors"):
        Published(tmp_path)


def test_what_architectures_may_be(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "model.safetensors")
    for said, found in ((["X"], ["X"]), ("X", []), ([1, "Y"], ["Y"]), (None, [])):
        (tmp_path / "config.json").write_text(json.dumps({"architectures": said}))
        assert Published(tmp_path).architectures == found

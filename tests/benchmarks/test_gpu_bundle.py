"""The parts of `make gpu-bundle` that need no download: pruning, the archive, and how it is unpacked."""

from __future__ import annotations

import importlib.util
import json
import os
import struct
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

BUNDLE = Path(__file__).resolve().parents[2] / "benchmarks/gpu/bundle"


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch):
    """`load(name)`: a script of the bundle as a module."""
    monkeypatch.syspath_prepend(str(BUNDLE))

    def make(name: str) -> ModuleType:
        spec = importlib.util.spec_from_file_location(f"bundle_{name}", BUNDLE / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        if name == "build":  # a small part of the source: packing all of it takes seconds
            module.SOURCE = ("src", "kernels", "platform/cli.py", "platform/verbs.py", "platform/errors.py")
            module.SOURCE += ("platform/registry.py",)
        return module

    return make


def entry(kind: int, architecture: int, payload: bytes) -> bytes:
    """One architecture's code in a fat binary: a header of 64 bytes, the architecture at 28, and the payload."""
    header = struct.pack("<HHIQ", kind, 0x101, 64, len(payload)).ljust(28, b"\0") + struct.pack("<I", architecture)
    return header.ljust(64, b"\0") + payload


def container(*entries: bytes) -> bytes:
    body = b"".join(entries)
    return struct.pack("<IHHQ", 0xBA55ED50, 1, 16, len(body)) + body


def elf(fat: bytes) -> bytes:
    """An ELF64 file of three sections: none, names, and .nv_fatbin."""
    names = b"\0.shstrtab\0.nv_fatbin\0"
    data = names + fat
    header = b"\x7fELF\x02\x01\x01".ljust(16, b"\0") + bytes(24) + struct.pack("<Q", 64 + len(data))
    header += struct.pack("<IHHHHHH", 0, 64, 0, 0, 64, 3, 1)

    def section(name: int, kind: int, offset: int, size: int) -> bytes:
        return struct.pack("<IIQQQQIIQQ", name, kind, 0, 0, offset, size, 0, 0, 1, 0)

    table = bytes(64) + section(1, 3, 64, len(names)) + section(11, 1, 64 + len(names), len(fat))
    return header + data + table


def test_only_one_architecture_keeps_its_code(load, tmp_path: Path) -> None:
    fat = container(entry(2, 80, b"A" * 40), entry(2, 90, b"B" * 24), entry(1, 90, b"P" * 8)) + bytes(16)
    fat += container(entry(2, 90, b"C" * 32), entry(1, 120, b"D" * 48))
    source, target = tmp_path / "a.so", tmp_path / "b.so"
    source.write_bytes(elf(fat))
    assert load("prune").keep_one(source, target, 90) == (24 + 8 + 32, 40 + 48)
    wanted = source.read_bytes().replace(b"A" * 40, bytes(40)).replace(b"D" * 48, bytes(48))
    assert target.read_bytes() == wanted


def test_what_cannot_be_pruned_is_refused(load, tmp_path: Path) -> None:
    prune, file = load("prune"), tmp_path / "a.so"
    for content, said in (
        (b"not a library", "not an ELF64"),
        (elf(container(entry(2, 80, b"A" * 8))), "no code for sm_90"),
        (elf(container(entry(7, 90, b"A" * 8))), "unknown kind 7"),
    ):
        file.write_bytes(content)
        with pytest.raises(ValueError, match=said):
            prune.keep_one(file, tmp_path / "b.so", 90)


@pytest.fixture
def bundle(load, tmp_path: Path) -> Path:
    """A bundle without the carried wheels: its site holds one module."""
    site = tmp_path / "site"
    (site / "carried").mkdir(parents=True)
    (site / "carried/__init__.py").write_text("VALUE = 7\n")
    (tmp_path / "wheels").mkdir()
    return load("build").pack(tmp_path, site, [])


def use(bundle: Path, into: Path, code: str, where: Path) -> subprocess.CompletedProcess[str]:
    env = {"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin", "MEGAVLM_UNPACK": str(into)}
    script = f'source "{bundle}/activate" && python3 -c "{code}"'
    return subprocess.run(["bash", "-c", script], cwd=where, env=env, capture_output=True, text=True, timeout=200)


def test_an_activated_bundle_imports_what_it_carries_and_our_code(bundle: Path, tmp_path: Path) -> None:
    code = "import carried, megavlm.platform.cli as c; print(carried.VALUE, c.__file__)"
    done = use(bundle, tmp_path / "into", code, tmp_path)
    assert done.stdout.split() == ["7", str(tmp_path / "into/source/src/megavlm/platform/cli.py")], done.stderr
    here = use(bundle, tmp_path / "into", code, BUNDLE.parents[2])  # inside a checkout its code is used
    assert here.stdout.split() == ["7", str(BUNDLE.parents[2] / "src/megavlm/platform/cli.py")], here.stderr


def test_a_damaged_bundle_is_not_unpacked(bundle: Path, tmp_path: Path) -> None:
    archive = bundle / "tree.tar.xz"
    archive.write_bytes(archive.read_bytes()[:-1] + b"x")
    done = use(bundle, tmp_path / "into", "print(1)", tmp_path)
    assert done.returncode and "not" in done.stderr and not (tmp_path / "into").exists()


def test_the_same_content_gives_the_same_archive(load, bundle: Path, tmp_path: Path) -> None:
    before = json.loads((bundle / "MANIFEST.json").read_text())["files"]
    os.utime(tmp_path / "site/carried/__init__.py", (1, 1))
    again = load("build").pack(tmp_path, tmp_path / "site", [])
    assert json.loads((again / "MANIFEST.json").read_text())["files"] == before


def test_what_is_carried_is_pinned_and_not_on_the_machine() -> None:
    names = {}
    for file in ("carried.txt", "image.txt"):
        lines = [line for line in (BUNDLE / file).read_text().splitlines() if line and not line.startswith("#")]
        names[file] = {line.partition("==")[0] for line in lines}
        assert file != "carried.txt" or all("==" in line for line in lines)
    assert not names["carried.txt"] & names["image.txt"]

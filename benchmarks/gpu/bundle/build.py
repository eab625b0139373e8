"""Makes one archive of what a GPU machine without a network lacks, and checks that it imports; see ../README.md.

    python benchmarks/gpu/bundle/build.py [FOLDER]

FOLDER (build/gpu-bundle) caches what is costly: an environment like the machine's (5 GB), wheels, compiled files. The
bundle itself is FOLDER/bundle. Exit codes: 0 ok, 2 no Python 3.12 or compiler here, 3 too large or does not import.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import extension
import prune

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[2]
LIMIT = 60 * 2**20
ARCHITECTURE = 90  # sm_90: H100 and H200
ENGINE = "2.12.0"  # the newest Transformer Engine that the cuBLAS of torch 2.11.0+cu130 can load
SOURCE = ("src", "megatron_mm", "platform", "kernels", "data_curation", "slurm", "tests", "benchmarks/gpu")
SHIPPED = ("activate", "unpack.py", "imports.py")
LIBRARY = "transformer_engine/wheel_lib/libtransformer_engine.so"
METADATA = f"Metadata-Version: 2.1\nName: transformer-engine-torch\nVersion: {ENGINE}\n"


class Absent(Exception):
    """What has to be installed here first."""


def main(folder: Path) -> int:
    try:
        python = environment(folder)
    except Absent as error:
        print(error, file=sys.stderr)
        return 2
    wheels = fetch(folder, python)
    site = assemble(folder, wheels, extension.build(_source(folder), python, folder / "extension"))
    bundle = pack(folder, site, wheels)
    size = sum(path.stat().st_size for path in bundle.iterdir())
    print(f"{bundle}: {size / 2**20:.1f} MiB of {LIMIT / 2**20:.0f}")
    if size > LIMIT:
        return 3
    return 3 if imports(folder, python) else 0


def environment(folder: Path) -> Path:
    """A Python 3.12 with what the machine has; made anew when what it should hold has changed."""
    python, ready = folder / "venv/bin/python", folder / "venv/.ready"
    wanted = "".join((HERE / name).read_text() for name in ("image.txt", "headers.txt"))
    if ready.exists() and ready.read_text() == wanted:
        return python
    if shutil.which("g++") is None:
        raise Absent("g++ is missing: apt-get install g++")
    if not python.exists():
        subprocess.run([find_python(), "-m", "venv", folder / "venv"], check=True)
    _pip(python, "install", "-r", HERE / "image.txt", "-r", HERE / "headers.txt")
    ready.write_text(wanted)
    return python


def find_python() -> str:
    """A Python 3.12 of this machine: $PYTHON312, python3.12, or pyenv's."""
    pyenv = sorted(Path.home().glob(".pyenv/versions/3.12*/bin/python"))
    for found in (os.environ.get("PYTHON312"), shutil.which("python3.12"), *map(str, pyenv)):
        if found and subprocess.run([found, "-c", ""], capture_output=True).returncode == 0:
            return found
    raise Absent("no Python 3.12 here: install one, or name it in PYTHON312")


def fetch(folder: Path, python: Path) -> list[Path]:
    """The wheels of carried.txt, and Transformer Engine's extension as source, from the registry that pip uses."""
    wheels = folder / "wheels"
    wanted = (HERE / "carried.txt").read_text()
    ready = wheels / ".ready"
    if not ready.exists() or ready.read_text() != wanted:
        shutil.rmtree(wheels, ignore_errors=True)
        _pip(python, "download", "--no-deps", "--only-binary", ":all:", "-d", wheels, "-r", HERE / "carried.txt")
        named = f"transformer-engine-torch=={ENGINE}"
        _pip(python, "download", "--no-deps", "--no-binary", ":all:", "--no-build-isolation", "-d", wheels, named)
        ready.write_text(wanted)
    return sorted(wheels.glob("*.whl"))


def assemble(folder: Path, wheels: list[Path], library: Path) -> Path:
    """The folder that goes on PYTHONPATH: every wheel unpacked, Transformer Engine pruned and with its extension."""
    site = folder / "site"
    shutil.rmtree(site, ignore_errors=True)
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(site)
    kept, blanked = prune.keep_one(site / LIBRARY, site / LIBRARY, ARCHITECTURE)
    print(f"Transformer Engine: {kept / 2**20:.0f} MiB of sm_{ARCHITECTURE} kept, {blanked / 2**20:.0f} MiB blanked")
    shutil.copy(library, site)
    about = site / f"transformer_engine_torch-{ENGINE}.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(METADATA)
    return site


def pack(folder: Path, site: Path, wheels: list[Path]) -> Path:
    """site and our own source in one archive, the scripts that use it, and MANIFEST.json with hashes and versions."""
    bundle = folder / "bundle"
    shutil.rmtree(bundle, ignore_errors=True)
    bundle.mkdir()
    with tarfile.open(bundle / "tree.tar.xz", "w:xz", preset=3) as archive:
        for path in sorted(site.rglob("*")):
            _add(archive, path, Path("site") / path.relative_to(site))
        for path in _sources():
            _add(archive, path, Path("source") / path.relative_to(ROOT))
    for name in SHIPPED:
        shutil.copy(HERE / name, bundle)
    manifest = {
        "wheels": {wheel.name: _sha256(wheel) for wheel in wheels},
        "source": {path.name: _sha256(path) for path in (folder / "wheels").glob("*.tar.gz")},
        "commit": _git("rev-parse", "HEAD").strip(),
        "architecture": f"sm_{ARCHITECTURE}",
        "files": {path.name: _sha256(path) for path in sorted(bundle.iterdir())},
    }
    (bundle / "MANIFEST.json").write_text(json.dumps(manifest, indent=2) + "\n")
    return bundle


def imports(folder: Path, python: Path) -> int:
    """Use the bundle as on the machine, unpacked anew and outside this checkout; the exit status of imports.py."""
    bundle, into = folder / "bundle", folder / "unpacked"
    shutil.rmtree(into, ignore_errors=True)
    env = {"PATH": f"{python.parent}:/usr/bin:/bin", "HOME": str(folder), "MEGAVLM_UNPACK": str(into)}
    script = f'cd / && source "{bundle}/activate" && python3 "{bundle}/imports.py"'
    return subprocess.run(["bash", "-ec", script], env=env).returncode


def _source(folder: Path) -> Path:
    source = folder / "sdist" / f"transformer_engine_torch-{ENGINE}"
    if not source.exists():
        with tarfile.open(folder / "wheels" / f"{source.name}.tar.gz") as archive:
            archive.extractall(source.parent, filter="data")
    return source


def _sources() -> Iterator[Path]:
    """Our code as it lies here, what is not committed yet included."""
    yield ROOT / "pyproject.toml"
    names = _git("ls-files", "-z", "--cached", "--others", "--exclude-standard", *SOURCE).split("\0")
    yield from (ROOT / name for name in sorted(set(names)) if name and os.path.lexists(ROOT / name))


def _add(archive: tarfile.TarFile, path: Path, name: Path) -> None:
    """One file or link without who made it and when: the same content gives the same archive."""
    if path.is_dir() and not path.is_symlink():
        return
    info = archive.gettarinfo(path, str(name))
    info.mtime = info.uid = info.gid = 0
    info.uname = info.gname = ""
    if info.isfile():
        with path.open("rb") as file:
            archive.addfile(info, file)
    else:
        archive.addfile(info)


def _pip(python: Path, *arguments: object) -> None:
    """Transformer Engine's setup would otherwise look for a compiled wheel elsewhere than the registry."""
    env = os.environ | {"NVTE_PYTORCH_FORCE_BUILD": "TRUE"}
    subprocess.run([python, "-m", "pip", "--quiet", *arguments], check=True, env=env)


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=ROOT, check=True, capture_output=True, text=True).stdout


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "build/gpu-bundle").resolve()))

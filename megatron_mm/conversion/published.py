"""Published weights on disk: safetensors, or files of torch.save with tensors alone, of any number of shards.

Nothing in them is run, and no name in them becomes a path that leaves their folder.
"""

from __future__ import annotations

import functools
import json
import pickle
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from megavlm.platform.errors import InputError
from megavlm.platform.storage import safe_join

from .torch_files import TorchFile

if TYPE_CHECKING:
    from torch import Tensor

# What is taken where no index says it, the first of these that is there: a projector's weights are one file (LLaVA's
# first stage), and so are those of some encoders.
PATTERNS = ("*.safetensors", "pytorch_model*.bin", "mm_projector.bin", "*.pth")
WEIGHTS = {".safetensors", ".bin", ".pth", ".pt"}
INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
OPEN_FILES = 2  # a layer's tensors may lie in two shards; what is mapped counts as this process' memory
DAMAGED = (OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError, zipfile.BadZipFile)
DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I64": "int64"}


class Entry(NamedTuple):
    """A published tensor: its file, its shape, and its dtype by torch's name."""

    file: Path
    shape: tuple[int, ...]
    dtype: str


class Published:
    """A folder of published weights, or one file of them. Only the tables of contents are read at first.

    `unused` are weight files and indexes that lie there and are not read, and entries of files that are no weights,
    with the reason. Raises InputError for a folder without weights, an index that names what is not there, a file that
    is damaged or would run code.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = _json(path / "config.json") if (path / "config.json").is_file() else None
        self.tensors: dict[str, Entry] = {}
        files = _files(path)
        self.unused = _unused(path, files)
        for file in files:
            self._list(file)
        self._open = functools.lru_cache(OPEN_FILES)(_open)

    def _list(self, file: Path) -> None:
        opened = _open(file)
        for name in opened.names():
            if name in self.tensors:
                raise InputError(f"tensor '{name}' stands in two files", where=f"{self.tensors[name].file}, {file}")
            self.tensors[name] = Entry(file, *opened.describe(name))
        self.unused |= {f"{file.name}: {name}": "no weights of the model" for name in opened.beside}

    @property
    def architectures(self) -> list[str]:
        """What config.json calls the model; none without it."""
        named = (self.config or {}).get("architectures")
        return [name for name in named if isinstance(name, str)] if isinstance(named, list) else []

    def read(self, name: str) -> Tensor:
        """One tensor, from its file as it is. Memory is the file's pages until the file is closed for another."""
        return self._open(self.tensors[name].file).get_tensor(name)


def _files(path: Path) -> list[Path]:
    """The weight files, in order: those that an index names, or that lie there."""
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise InputError(f"no weights at {path}", where=str(path), fix="give the folder of a downloaded model")
    for index in INDEXES:
        if (path / index).is_file():
            return _indexed(path, path / index)
    for pattern in PATTERNS:
        if found := sorted(path.glob(pattern)):
            return found
    raise InputError(f"the folder holds no {' and no '.join(PATTERNS)}", where=str(path))


def _unused(path: Path, files: list[Path]) -> dict[str, str]:
    """What looks like weights, or like an index of them, and is none that is read: old files that a release kept."""
    if not path.is_dir():
        return {}
    index = next((name for name in INDEXES if (path / name).is_file()), None)
    read = {file.name for file in files} | {index}
    alike = {file.name for file in path.iterdir() if file.suffix in WEIGHTS or ".index" in file.name}
    why = f"{index} does not name it" if index else f"{files[0].name} is read"
    return {name: why for name in sorted(alike - read)}


def _indexed(folder: Path, index: Path) -> list[Path]:
    table = _json(index).get("weight_map")
    if not isinstance(table, dict) or not all(isinstance(name, str) for name in table.values()):
        raise InputError("the index has no weight_map of file names", where=str(index))
    files = [safe_join(folder, name) for name in sorted(set(table.values()))]
    gone = next((file for file in files if not file.is_file()), None)
    if gone:
        raise InputError(
            f"the index names '{gone.name}', which is not there", where=str(index), fix="download it again"
        )
    return files


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise InputError(f"cannot be read as JSON: {error}", where=str(path)) from None
    if not isinstance(found, dict):
        raise InputError("is no JSON object", where=str(path))
    return found


class _Safetensors:
    """A safetensors file, mapped into memory."""

    beside: tuple[str, ...] = ()  # entries that are no tensors: there are none

    def __init__(self, file: Path) -> None:
        from safetensors import safe_open

        self._handle = safe_open(file, framework="pt")

    def names(self) -> list[str]:
        """The names of its tensors."""
        return list(self._handle.keys())

    def describe(self, name: str) -> tuple[tuple[int, ...], str]:
        """Shape and dtype of a tensor, from the file's head."""
        part = self._handle.get_slice(name)
        return tuple(part.get_shape()), DTYPES.get(part.get_dtype(), part.get_dtype())

    def get_tensor(self, name: str) -> Tensor:
        """A tensor, over the mapped file."""
        return self._handle.get_tensor(name)


def _open(file: Path) -> _Safetensors | TorchFile:
    """Raises InputError for what is neither, or is damaged."""
    from safetensors import SafetensorError

    kind: Any = _Safetensors if file.suffix == ".safetensors" else TorchFile
    try:
        return kind(file)
    except (
        SafetensorError,
        OSError,
        RuntimeError,
        ValueError,
        EOFError,
        pickle.UnpicklingError,
        zipfile.BadZipFile,
    ) as error:
        what = f"is damaged, or no file of weights: {str(error).strip().partition(chr(10))[0]}"
        raise InputError(
            what, where=str(file), fix="download it again, as safetensors where there is a choice"
        ) from None

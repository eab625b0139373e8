"""Cluster profiles: what a site is like, in one YAML file that its admin writes once."""

from __future__ import annotations

import importlib.resources
import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from megavlm.platform.config import Config
from megavlm.platform.config.tree import parse_yaml
from megavlm.platform.errors import ConfigError, did_you_mean


def one_line(text: str) -> str:
    """A text that may stand in an #SBATCH line; pydantic turns the ValueError into a ConfigError with its key."""
    if re.search(r"[\x00-\x1f\x7f]", text):
        raise ValueError("control characters (newline, tab, ...) cannot stand here")
    return text


def variable(name: str) -> str:
    """The name of an environment variable."""
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
        raise ValueError(f"'{name}' cannot name an environment variable")
    return name


Line = Annotated[str, AfterValidator(one_line)]
Variable = Annotated[str, AfterValidator(variable)]


class Container(Config):
    """What the work runs in. pyxis: options of srun; apptainer: `apptainer exec` around the command; none: the host."""

    kind: Literal["none", "pyxis", "apptainer"] = "none"
    image: Line | None = None  # pyxis: REGISTRY#IMAGE:TAG or a .sqsh file; apptainer: a .sif file
    mounts: list[Line] = []  # SOURCE:TARGET[:FLAGS]
    options: list[Line] = []  # further words for srun (pyxis) or `apptainer exec`
    python: Line = "python3"  # the interpreter inside, which has megavlm's packages


class Hang(Config):
    """When silence is a hang: seconds without a step of any rank, the larger of `seconds` and `steps` median steps."""

    seconds: float = Field(60.0, gt=0)
    steps: float = Field(10.0, ge=1)
    other_seconds: float = Field(1800.0, gt=0)  # while a rank starts, saves or evaluates


class Attempts(Config):
    """How often a job is tried. An attempt makes progress when it saves."""

    most: int = Field(50, ge=1)
    without_progress: int = Field(3, ge=1)  # so many in a row end the job


class Preflight(Config):
    """The check of every node before each attempt; `worst` is a node's slowest allowed part of the fleet's median."""

    kind: Literal["none", "quick", "full"] = "quick"
    worst: float = Field(0.5, gt=0, lt=1)
    seconds: float = Field(300.0, gt=0)  # a node that has not answered by then is bad


class Limits(Config):
    """What a user may ask of this cluster through us, beside what Slurm itself enforces."""

    nodes: int | None = Field(None, ge=1)
    minutes: int | None = Field(None, ge=1)
    array_tasks: int = Field(256, ge=1)  # tasks of one curation array, whatever the number of shards


class ClusterProfile(Config):
    """One cluster. slurm/clusters/template.yaml explains every key."""

    name: str = Field(pattern=r"^\w[\w.-]*$")
    description: str = ""
    partition: Line | None = None
    account: Line | None = None
    qos: Line | None = None
    gpus_per_node: int = Field(0, ge=0)
    gpu: Line | None = None  # which, by `megavlm plan --gpu`: memory is checked before anything is queued
    processes_per_node: int | None = Field(None, ge=1)  # default: one per GPU, or one
    cpus_per_task: int | None = Field(None, ge=1)
    memory: Line | None = None  # as sbatch takes it; "0" is all of a node
    minutes: int = Field(60, ge=1)
    exclusive: bool = False
    requeue: bool = True  # false: where requeueing is forbidden, a successor job is submitted instead
    save_seconds: int = Field(120, ge=1)  # before the time limit; Slurm may be a minute early
    setup: list[str] = []  # lines of shell before anything else; written by the admin and run as they are
    environment: dict[Variable, Line] = {}  # for every process, network variables above all
    pass_environment: list[Variable] = []  # names taken over from the submitting shell; never secrets
    sbatch: dict[str, Line | bool] = {}  # any further option of sbatch, such as constraint: h100
    container: Container = Container()
    hang: Hang = Hang()
    attempts: Attempts = Attempts()
    preflight: Preflight = Preflight()
    limits: Limits = Limits()

    @property
    def processes(self) -> int:
        """Training processes per node."""
        return self.processes_per_node or max(self.gpus_per_node, 1)


def user_folder() -> Path:
    """~/.config/megavlm/clusters, or its place under $XDG_CONFIG_HOME."""
    base = os.environ.get("XDG_CONFIG_HOME") or "~/.config"
    return Path(base).expanduser() / "megavlm" / "clusters"


def profiles() -> dict[str, Path]:
    """Name -> file of every profile; a user's own stands before a shipped one of the same name."""
    shipped = Path(str(importlib.resources.files("megavlm.slurm") / "clusters"))
    return {path.stem: path for folder in (shipped, user_folder()) for path in sorted(folder.glob("*.yaml"))}


def load_profile(name_or_path: str) -> ClusterProfile:
    """A profile by its name or its file. Raises ConfigError for an unknown name, key or value."""
    path = Path(name_or_path)
    if path.suffix not in {".yaml", ".yml"}:
        known = profiles()
        if name_or_path not in known:
            fix = f"{did_you_mean(name_or_path, known)} Your own go to {user_folder()}/NAME.yaml"
            raise ConfigError(f"no cluster profile '{name_or_path}'", where="--cluster", fix=fix)
        path = known[name_or_path]
    if not path.is_file():
        raise ConfigError(f"no file '{path}'", where="--cluster", fix="give a profile's name or its YAML file")
    return parse_profile(parse_yaml(path.read_text(), where=str(path)), path)


def parse_profile(tree: dict[str, Any], path: Path) -> ClusterProfile:
    """A profile from plain data; its name is the file's unless it says otherwise."""
    profile: ClusterProfile = ClusterProfile.parse({"name": path.stem, **tree}, where=str(path))
    if profile.container.kind != "none" and not profile.container.image:
        fix = f"set container.image in {path}"
        raise ConfigError(f"container '{profile.container.kind}' has no image", where="container.image", fix=fix)
    return profile

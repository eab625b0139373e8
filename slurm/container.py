"""How the work gets into its container: words for srun (pyxis), or words around the command (apptainer)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from megavlm.platform.errors import ConfigError

from .profile import ClusterProfile


def srun_words(profile: ClusterProfile) -> list[str]:
    """What srun is told of the container; nothing unless pyxis runs it."""
    container = profile.container
    if container.kind != "pyxis":
        return []
    mounts = [f"--container-mounts={','.join(container.mounts)}"] if container.mounts else []
    return [f"--container-image={container.image}", *mounts, *container.options]


def inside(profile: ClusterProfile, words: Iterable[str]) -> list[str]:
    """`words` as the task of a step has to say them to have them run inside the container."""
    return WRAP[profile.container.kind](profile, list(words))


def python(profile: ClusterProfile, outside: str) -> str:
    """The interpreter of the work: the container's own, or `outside`, the one on the host."""
    return outside if profile.container.kind == "none" else profile.container.python


def mounted(profile: ClusterProfile, folders: Iterable[Path]) -> ClusterProfile:
    """The profile with these folders to be seen inside under the same names; without a container, as it is.

    Raises ConfigError for a folder that the syntax of mounts cannot name.
    """
    container = profile.container
    if container.kind == "none":
        return profile
    targets = {mount.split(":")[1] for mount in container.mounts if ":" in mount}
    further = [_mount(folder) for folder in dict.fromkeys(folders) if str(folder) not in targets]
    own = container.model_copy(update={"mounts": [*container.mounts, *further]})
    return profile.model_copy(update={"container": own})


def _mount(folder: Path) -> str:
    if found := next((letter for letter in ",:" if letter in str(folder)), None):
        fix = "give another folder with --out, or work in another one"
        raise ConfigError(f"{folder} holds a '{found}', which a mount cannot name", where="container.mounts", fix=fix)
    return f"{folder}:{folder}"


def _as_it_is(profile: ClusterProfile, words: list[str]) -> list[str]:
    return words


def _apptainer(profile: ClusterProfile, words: list[str]) -> list[str]:
    """--nv brings the host's NVIDIA driver in; it is left out where a profile asks for no GPU."""
    container = profile.container
    gpus = ["--nv"] if profile.gpus_per_node else []
    binds = [word for mount in container.mounts for word in ("--bind", mount)]
    return ["apptainer", "exec", *gpus, *binds, *container.options, str(container.image), *words]


WRAP: dict[str, Callable[[ClusterProfile, list[str]], list[str]]] = {
    "none": _as_it_is,
    "pyxis": _as_it_is,
    "apptainer": _apptainer,
}

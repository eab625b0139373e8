"""The batch script of one job: short, complete, and safe to print: what it shows is what is submitted."""

from __future__ import annotations

import dataclasses
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from megavlm.platform.errors import ConfigError

from .jobs import LOG
from .profile import ClusterProfile

CONTROL = re.compile(r"[\x00-\x1f\x7f]")
LONGEST_NAME = 200  # of bytes; file systems take 255, and more is appended here and there
OPTION = re.compile(r"[a-z][a-z-]*")
# Options of sbatch that a profile's `sbatch` may not set: ours, those with keys of their own, and those that would make
# something else of the job.
OURS = {
    "account", "array", "chdir", "cpus-per-task", "dependency", "error", "exclusive", "export", "gpus-per-node", "hold",
    "input", "job-name", "kill-on-invalid-dep", "mem", "no-kill", "no-requeue", "nodes", "ntasks", "ntasks-per-node",
    "open-mode", "output", "parsable", "partition", "qos", "requeue", "signal", "test-only", "time", "wait", "wrap",
}  # fmt: skip
COMMENT = """\
# Written by `megavlm submit`. What is exec'ed at the end is the batch shell: it gets the signal before the time limit,
# starts the work on all nodes with srun, watches it, and saves and requeues it."""
# Bash would die of it; what is exec'ed inherits this until it listens itself.
DEAF = "trap '' USR1"


@dataclasses.dataclass(frozen=True)
class JobScript:
    """All that the script of one job says.

    `run`, `code` (the snapshot) and `folder` (where the job works) are absolute. `command` is a verb and its arguments;
    `nodes` is what it runs on, `spares` so many more. `successor`: hand on to another job instead of being requeued.
    """

    run: Path
    name: str
    profile: ClusterProfile
    nodes: int
    spares: int
    command: Sequence[str]
    code: Path
    folder: Path
    python: str
    variables: Mapping[str, str]
    successor: bool = False

    @property
    def log(self) -> Path:
        """The job's own output, with Slurm's %j for its id."""
        return self.run / "jobs" / self.name / LOG


def render(job: JobScript) -> str:
    """The script. Raises ConfigError for what neither a script nor Slurm can carry unchanged."""
    lines = ["#!/bin/bash", *(_option(*option) for option in _options(job)), COMMENT]
    lines += [DEAF, *job.profile.setup, *_exports(job)]
    return "\n".join([*lines, f"exec {' '.join(quote(word) for word in supervisor(job))}"]) + "\n"


def supervisor(job: JobScript) -> list[str]:
    """The words of the process that is the batch shell; values after `=`, so that none is taken for an option."""
    words = [job.python, "-m", "megavlm.slurm.supervisor", f"--run={job.run}", f"--job={job.name}"]
    words += [f"--nodes={job.nodes}", f"--spares={job.spares}"]
    return [*words, *(["--successor"] if job.successor else []), "--", *job.command]


def _options(job: JobScript) -> Iterator[tuple[str, str | None]]:
    """(option, value) of every #SBATCH line; None for an option without a value."""
    profile = job.profile
    yield "job-name", f"{job.run.name}.{check_name(job.name)}"
    yield "chdir", str(check_path(job.folder))
    yield "output", _file_pattern(job)
    yield "open-mode", "append"
    yield "nodes", str(job.nodes + job.spares)
    yield "ntasks-per-node", "1"  # srun starts one task per node, which starts its processes
    if profile.cpus_per_task:
        yield "cpus-per-task", str(profile.cpus_per_task * profile.processes)
    if profile.gpus_per_node:
        yield "gpus-per-node", str(profile.gpus_per_node)
    for option, value in (("mem", profile.memory), ("partition", profile.partition), ("account", profile.account)):
        if value is not None:
            yield option, value
    if profile.qos is not None:
        yield "qos", profile.qos
    yield "time", str(profile.minutes)
    if profile.exclusive:
        yield "exclusive", None
    yield "no-requeue" if job.successor else "requeue", None
    if job.spares:
        yield "no-kill", None
    yield "signal", f"B:USR1@{profile.save_seconds}"
    yield from _further(profile)


def _further(profile: ClusterProfile) -> Iterator[tuple[str, str | None]]:
    for option, value in profile.sbatch.items():
        if option in OURS or not OPTION.fullmatch(option):
            why = "is set by a key of its own, or by us" if option in OURS else "is no long option of sbatch"
            raise ConfigError(f"'{option}' {why}", where=f"sbatch.{option}", fix="see slurm/clusters/template.yaml")
        if value is not False:
            yield option, None if value is True else str(value)


def _option(name: str, value: str | None) -> str:
    """One #SBATCH line. Inside double quotes sbatch takes all but a backslash and the quote itself as it stands
    (measured with Slurm 22.05: '#', '%', '$', blanks and the like arrive unchanged)."""
    if value is None:
        return f"#SBATCH --{name}"
    if re.fullmatch(r"[\w@:.,/+=-]+", value, re.ASCII):
        return f"#SBATCH --{name}={value}"
    escaped = carried(value, f"--{name}").replace("\\", "\\\\").replace('"', '\\"')
    return f'#SBATCH --{name}="{escaped}"'


def _file_pattern(job: JobScript) -> str:
    """Slurm replaces %x and the like in the names of output files; %% is a percent sign."""
    folder = str(check_path(job.run / "jobs" / job.name))
    return f"{folder.replace('%', '%%')}/{LOG}"


def _exports(job: JobScript) -> Iterator[str]:
    yield f'export PYTHONPATH={quote(str(job.code))}"${{PYTHONPATH:+:$PYTHONPATH}}"'
    for name, value in {**job.profile.environment, **job.variables}.items():
        yield f"export {name}={quote(value)}"


def quote(text: str) -> str:
    """One word of bash. Control characters get bash's $'...', so that a line stays a line."""
    if not text.isascii():
        _check_encodable(text, "the command")
    if not CONTROL.search(text):
        return shlex.quote(text)
    kept = text.replace("\\", "\\\\").replace("'", "\\'")
    return "$'" + CONTROL.sub(lambda found: f"\\{ord(found[0]):03o}", kept) + "'"


def carried(text: str, where: str) -> str:
    """`text`, when one line can hold it; else ConfigError."""
    if CONTROL.search(text):
        fix = "leave newlines, tabs and the like out"
        raise ConfigError(f"{text!r} holds a control character", where=where, fix=fix)
    _check_encodable(text, where)
    return text


def _check_encodable(text: str, where: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ConfigError(f"{text!r} is no valid UTF-8", where=where, fix="write it in UTF-8") from None


def check_name(name: str) -> str:
    """`name`, when it can name a job and its folder; raises ConfigError."""
    carried(name, "the job's name")
    if not name or name.startswith(".") or re.search(r"[/\\:]", name) or len(name.encode()) > LONGEST_NAME:
        fix = f"a name has no '/', '\\' or ':', does not begin with '.', and is at most {LONGEST_NAME} bytes long"
        raise ConfigError(f"{name!r} cannot name a job", where="the job's name", fix=fix)
    return name


def check_path(path: Path) -> Path:
    """`path`, when Slurm and Python can be told of it; raises ConfigError.

    A backslash stops sbatch from replacing %j in the path of the log, a colon ends an entry of PYTHONPATH.
    """
    carried(str(path), "the run folder")
    if found := re.search(r"[\\:]", str(path)):
        fix = "give another folder with --out"
        raise ConfigError(
            f"{path} holds a '{found[0]}', which Slurm or Python misreads", where="the run folder", fix=fix
        )
    return path

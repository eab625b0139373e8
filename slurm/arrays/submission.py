"""An array as submitit submits it: a cluster profile's words, a clean environment, and patience with slurmctld."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import submitit

from .. import container
from ..commands import SlurmError, clean_environment, run
from ..profile import ClusterProfile

T = TypeVar("T")
PATIENCE_SECONDS = 3600.0  # so long is a controller asked again that does not answer
LONGEST_PAUSE = 30.0
SUBMITIT = "submitit"  # its folder of scripts, pickles and logs, below the board's
SILENT = re.compile(r"unable to contact slurm controller|timed out|no answer in|connection refused", re.IGNORECASE)


def submit(profile: ClusterProfile, name: str, folder: Path, tasks: int) -> list[str]:
    """Submit an array of `tasks` workers for the board in `folder`: their job ids.

    What is pickled is submitit's own CommandFunction, which holds the worker's command line. Raises SlurmError.
    """
    python = container.python(profile, sys.executable)
    command = submitit.helpers.CommandFunction([python, "-m", "megavlm.slurm.arrays.worker", str(folder)])
    inside = container.mounted(profile, [run_folder(folder), *map(Path, import_path())])
    launch = shlex.join(container.inside(inside, [python]))
    executor = submitit.SlurmExecutor(folder=folder / SUBMITIT, python=launch)
    executor.update_parameters(**parameters(inside, name), array_parallelism=tasks)
    with environment(variables(profile)):
        try:
            return [job.job_id for job in executor.submit_array([command] * tasks)]
        except (submitit.core.utils.FailedJobError, submitit.core.utils.FailedSubmissionError) as error:
            raise SlurmError(f"sbatch failed: {error}", where=str(folder)) from None


def parameters(profile: ClusterProfile, name: str) -> dict[str, Any]:
    """The profile in submitit's words: it describes one worker, which has one node's share of it."""
    further = {option: value for option, value in profile.sbatch.items() if value is not False}
    cpus = {"cpus_per_task": profile.cpus_per_task} if profile.cpus_per_task else {}
    # since Slurm 22.05 srun does not take over what sbatch was told
    passed = [f"--cpus-per-task={profile.cpus_per_task}"] if profile.cpus_per_task else []
    named = {"partition": profile.partition, "account": profile.account, "qos": profile.qos, "mem": profile.memory}
    return {
        "job_name": name,
        "time": profile.minutes,
        "setup": profile.setup,
        "srun_args": [*passed, *container.srun_words(profile)],
        "additional_parameters": further | {"requeue" if profile.requeue else "no-requeue": True},
        "wckey": None,  # submitit's default is its own name, which a cluster that tracks keys refuses
        **({"exclusive": True} if profile.exclusive else {}),
        **cpus,
        **{key: value for key, value in named.items() if value is not None},
    }


def run_folder(folder: Path) -> Path:
    """The run that a folder of logs belongs to, or that folder itself: what a container has to show to a worker."""
    return next((above.parent for above in folder.parents if above.name == "attempts"), folder)


def import_path() -> list[str]:
    """Where this process finds megavlm, and whatever else its PYTHONPATH names: third parties' stages."""
    own = str(Path(__file__).absolute().parents[3])
    return list(dict.fromkeys([own, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]))


def variables(profile: ClusterProfile) -> dict[str, str]:
    """What the workers' environment holds beside the short list of the caller's: no secret of the shell reaches it."""
    passed = {name: os.environ[name] for name in profile.pass_environment if name in os.environ}
    threads = os.environ.get("OMP_NUM_THREADS", str(profile.cpus_per_task or 1))
    path = os.pathsep.join(import_path())
    return {"OMP_NUM_THREADS": threads, "PYTHONPATH": path, **passed, **profile.environment}


@contextlib.contextmanager
def environment(extra: Mapping[str, str]) -> Iterator[None]:
    """This process's environment cut down to what sbatch may see: submitit hands on all there is."""
    before = dict(os.environ)
    _replace(clean_environment(extra))
    try:
        yield
    finally:
        _replace(before)


def _replace(values: Mapping[str, str]) -> None:
    os.environ.clear()
    os.environ.update(values)


def most_tasks() -> int:
    """The largest array that this Slurm takes; raises SlurmError."""
    found = re.search(r"^MaxArraySize\s*=\s*(\d+)", run("scontrol", "show", "config"), re.MULTILINE)
    return max(1, int(found[1]) - 1) if found else 1000


def cancel(array: str) -> None:
    """End an array, whatever of it is left; raises SlurmError."""
    run("scancel", "--quiet", array)


def patiently(call: Callable[[], T], wait: Callable[[float], None], patience: float = PATIENCE_SECONDS) -> T:
    """What `call` returns, asked again for as long as slurmctld does not answer, with `wait(seconds)` in between."""
    pause, end = 1.0, time.monotonic() + patience
    while True:
        try:
            return call()
        except SlurmError as error:
            if not SILENT.search(error.what) or time.monotonic() > end:
                raise
        wait(pause)
        pause = min(2 * pause, LONGEST_PAUSE)

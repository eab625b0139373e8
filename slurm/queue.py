"""What Slurm knows of jobs: one question for any number of them, with accounting or without."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

from megavlm.platform.errors import MissingPackage

from .commands import SlurmError, attempt

SECONDS = 5.0  # a person waits for the answer; squeue itself would go on trying for longer
MOST_NAMED = 1000  # job ids on one command line; for more, all jobs are asked for and the others left out here
SQUEUE = "%i|%T|%S|%N|%r"
SACCT = "JobID,State,Start,NodeList,Reason"
UNKNOWN, UNREACHABLE = "UNKNOWN", "UNREACHABLE"
WAITING = {"PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "RESV_DEL_HOLD", "SPECIAL_EXIT"}
ENDED = {
    "BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "REVOKED",
    "TIMEOUT",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class JobState:
    """One job, or one array of jobs, in Slurm's own words.

    `starts`: when it started, or for a waiting job Slurm's estimate, as Slurm writes times; None where it has none.
    `tasks`: of an array, how many tasks are in which state; its `state` is then that of the liveliest. Those cancelled
    before they began count as one: squeue forgets how many they were.
    UNKNOWN: Slurm has forgotten the job. UNREACHABLE: nobody could be asked, and `reason` says why.
    """

    job_id: int
    state: str
    reason: str | None = None
    nodes: str = ""
    starts: str | None = None
    tasks: dict[str, int] | None = None

    @property
    def waiting(self) -> bool:
        """Whether it is in the queue, held or not."""
        return self.state in WAITING

    @property
    def ended(self) -> bool:
        """Whether Slurm says that it is over."""
        return self.state in ENDED

    @property
    def running(self) -> bool:
        """Whether it has nodes: running, suspended, or tidying up."""
        return not (self.waiting or self.ended or self.state in {UNKNOWN, UNREACHABLE})

    @property
    def alive(self) -> bool:
        """Whether it may still do something."""
        return self.waiting or self.running


def ask(job_ids: Iterable[int]) -> dict[int, JobState]:
    """The state of every one of `job_ids`, by id. Never raises for what Slurm does or does not say.

    One call of squeue; one of sacct for those that squeue has forgotten, an answer only where accounting is on.
    """
    wanted = sorted(set(job_ids))
    if not wanted:
        return {}
    found, trouble = _squeue(wanted)
    if trouble is not None:
        return {job_id: JobState(job_id, UNREACHABLE, trouble) for job_id in wanted}
    if forgotten := [job_id for job_id in wanted if job_id not in found]:
        found |= _sacct(forgotten)
    return {job_id: found.get(job_id, JobState(job_id, UNKNOWN)) for job_id in wanted}


def _squeue(wanted: Sequence[int]) -> tuple[dict[int, JobState], str | None]:
    """The jobs that squeue knows, and what kept it from answering, if anything did."""
    named = ["-j", _listed(wanted)] if len(wanted) <= MOST_NAMED else []
    whole_arrays = {"SLURM_BITSTR_LEN": "0"}  # else the list of waiting tasks is cut after 64 characters
    words = ("squeue", "--states=all", "--noheader", "-o", SQUEUE, *named)
    try:
        done = attempt(*words, seconds=SECONDS, extra=whole_arrays)
    except (MissingPackage, SlurmError) as error:
        return {}, error.what
    if done.returncode and "Invalid job id" not in done.stderr:  # said of a single job that it has forgotten
        return {}, _last_line(done.stderr) or f"squeue ended with {done.returncode}"
    return parse(done.stdout, wanted), None


def _sacct(wanted: Sequence[int]) -> dict[int, JobState]:
    """What accounting remembers; nothing where there is none, or where it does not answer."""
    named = [] if len(wanted) > MOST_NAMED else ["-j", _listed(wanted)]
    since = [] if named else ["--starttime=1970-01-01"]
    words = ("sacct", "--allocations", "--noheader", "--parsable2", f"--format={SACCT}", *since, *named)
    try:
        done = attempt(*words, seconds=SECONDS, extra={"SLURM_BITSTR_LEN": "0"})
    except (MissingPackage, SlurmError):
        return {}
    return parse(done.stdout, wanted) if done.returncode == 0 else {}


def parse(text: str, wanted: Iterable[int]) -> dict[int, JobState]:
    """The lines of squeue or sacct, ID|STATE|START|NODES|REASON, as one JobState for each wanted job they tell of."""
    asked, rows = set(wanted), defaultdict(list)
    for line in text.splitlines():
        fields = line.split("|", 4)
        job = re.match(r"(\d+)(?:_(?:(\d+)|\[([^\]]*)\]?))?", fields[0])
        if len(fields) == 5 and job and int(job[1]) in asked:
            is_array = "_" in fields[0]
            tasks = _count(job[3]) if job[3] else 1
            rows[int(job[1])].append((_state(int(job[1]), fields), tasks, is_array))
    return {job_id: _merged(each) for job_id, each in rows.items()}


def _state(job_id: int, fields: Sequence[str]) -> JobState:
    _, state, starts, nodes, reason = fields
    return JobState(
        job_id,
        state.split()[0].rstrip("+") if state.split() else UNKNOWN,  # sacct: CANCELLED by 1000
        None if reason in {"", "None"} else reason,
        "" if nodes == "None assigned" else nodes,
        None if starts in {"", "N/A", "None", "Unknown"} else starts,
    )


def _merged(rows: list[tuple[JobState, int, bool]]) -> JobState:
    """One state for the rows of an array: of a running task, else of a waiting one, else of one that went wrong."""
    first = min((row[0] for row in rows), key=_liveliness)
    if not any(is_array for _, _, is_array in rows):
        return first
    counts: Counter[str] = Counter()
    for state, tasks, _ in rows:
        counts[state.state] += tasks
    return dataclasses.replace(first, tasks=dict(sorted(counts.items())))


def _liveliness(state: JobState) -> int:
    return [state.running, state.waiting, state.state != "COMPLETED", True].index(True)


def _count(tasks: str) -> int:
    """How many tasks "0-9:3,12%4" stands for."""
    spans = re.findall(r"(\d+)(?:-(\d+)(?::(\d+))?)?", tasks.partition("%")[0])
    return sum(len(range(int(first), int(last or first) + 1, int(step or 1))) for first, last, step in spans)


def _listed(job_ids: Iterable[int]) -> str:
    return ",".join(str(job_id) for job_id in job_ids)


def _last_line(text: str) -> str:
    return next((line for line in reversed(text.splitlines()) if line.strip()), "").strip()

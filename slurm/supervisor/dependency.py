"""Slurm's dependencies, rewritten when one job hands its work on to another.

Conditions are joined by "," (all of them) or by "?" (any of them), never by both; so a job that waits for one job can
be made to wait for it or its successor, and one that waits for several only for the successor in its place.
"""

from __future__ import annotations

import re

ALL, ANY = ",", "?"
FAILURE = "afternotok"  # who waits for a failure waits for this job's own


def handed_on(told: str, me: int, successor: int) -> str | None:
    """What a job shall wait for that waits for `me`, as squeue tells its dependency; None when it does not."""
    joint, terms = _parse(told)
    mine = [kind for kind, job_id in terms if job_id == str(me) and kind != FAILURE]
    if not mine or any(job_id == str(successor) for _, job_id in terms):
        return None
    if joint == ANY or len(terms) == 1:
        return _write(ANY, [*terms, *((kind, str(successor)) for kind in mine)])
    return _write(ALL, _replaced(terms, str(me), str(successor)))


def given_back(told: str, me: int, successor: int) -> str | None:
    """The opposite for a job that waits for several; None where nothing has to be done."""
    joint, terms = _parse(told)
    if joint == ANY or all(job_id != str(successor) for _, job_id in terms):
        return None
    return _write(ALL, _replaced(terms, str(successor), str(me)))


def _parse(told: str) -> tuple[str, list[tuple[str, str]]]:
    """How the conditions are joined, and (kind, job id) of each; squeue adds a state in brackets."""
    plain = re.sub(r"\(\w+\)", "", told)
    terms = []
    for condition in re.split("[,?]", plain):
        kind, *ids = condition.strip().split(":")
        terms += [(kind, job_id) for job_id in ids or [""]]
    return (ANY if ANY in plain else ALL), terms


def _replaced(terms: list[tuple[str, str]], old: str, new: str) -> list[tuple[str, str]]:
    return [(kind, new if job_id == old and kind != FAILURE else job_id) for kind, job_id in terms]


def _write(joint: str, terms: list[tuple[str, str]]) -> str:
    return joint.join(f"{kind}:{job_id}" if job_id else kind for kind, job_id in terms)

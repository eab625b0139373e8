"""What makes a node bad, and what is only worth a note: each rule tells its reasons in plain words."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from .figures import BETWEEN, COUNTS, FIGURES, FREE, TOLD_VERSIONS, VERSIONS
from .fleet import ENOUGH, Fleet

# Heartbeats and events of all nodes are put in order by their clocks. NTP keeps machines within milliseconds; a second
# off means that nothing keeps this one.
SKEW_SECONDS = 1.0
LITTLE = 0.1  # of what is usual
HELD_BACK = {0x08: "hardware", 0x20: "heat (software)", 0x40: "heat", 0x80: "power brake"}  # nvml.h, ClocksEventReason*

UNABLE = {
    "disk": ("the folder of the check cannot be written", "look at the mount, its space and its quota"),
    "memory_disk": ("/dev/shm cannot be written", "look at its size, and for files that are left over"),
    "matmul": ("it cannot multiply matrices", "look at nvidia-smi and at the installation of torch"),
}

Rule = Callable[[str, Fleet], Iterator[str]]


def answered(record: dict[str, Any]) -> bool:
    """Whether a node left more than its name."""
    return "figures" in record


def no_answer(node: str, fleet: Fleet) -> Iterator[str]:
    """Nothing was heard of it."""
    if not answered(fleet.record(node)):
        yield f"no answer within {fleet.options.seconds:.0f} s: see `scontrol show node {node}`"


def lost_gpus(node: str, fleet: Fleet) -> Iterator[str]:
    """Its GPUs do not answer, or are fewer than Slurm handed out. Where Slurm hands none out, nothing is asked."""
    record = fleet.record(node)
    given, seen, error = record.get("gpus_given"), record.get("counts", {}).get("gpus"), record.get("gpu_error")
    if given and error:
        yield f"nvidia-smi fails ({error}): reset or replace the GPU"
    elif given and seen is not None and seen < given:
        yield f"{seen} GPUs answer of {given} that Slurm gave: reset or replace what is missing"


def memory_errors(node: str, fleet: Fleet) -> Iterator[str]:
    """ECC errors since the driver was loaded that could not be corrected: results may be wrong."""
    for gpu in fleet.record(node).get("gpus", []):
        if errors := gpu.get("ecc_volatile"):
            found = f"GPU {gpu.get('index'):.0f} has {errors:.0f} uncorrected ECC errors"
            yield f"{found}: reset it, and replace it if they return"


def unable(node: str, fleet: Fleet) -> Iterator[str]:
    """What could not be measured at all."""
    for name, error in fleet.record(node).get("errors", {}).items():
        what, advice = UNABLE.get(name, (f"{name} cannot be measured", "try it by hand"))
        yield f"{what} ({error}): {advice}"


def unreachable(node: str, fleet: Fleet) -> Iterator[str]:
    """It could not talk with the leading node, and most others could; had it only come late, nothing is said."""
    met = [bool(record.get("met")) for record in fleet.records.values() if record]
    error = fleet.record(node).get("unreachable")
    if error and 2 * sum(met) > len(met):
        yield f"it cannot reach the other nodes ({error}): look at its network"


def mute(node: str, fleet: Fleet) -> Iterator[str]:
    """It was there, and in no round did anything pass between it and its partner, while most others got on."""
    met = [record["figures"] for record in fleet.records.values() if record and record.get("met")]
    for name in BETWEEN:
        able = sum(name in figures for figures in met)
        mine = fleet.record(node)
        if len(met) >= ENOUGH and 2 * able > len(met) and mine.get("met") and name not in mine["figures"]:
            yield f"no {FIGURES[name].title} with any partner: {FIGURES[name].advice}, and at firewalls"


def too_slow(node: str, fleet: Fleet) -> Iterator[str]:
    """A figure below the profile's part of the median."""
    for name, figure in FIGURES.items():
        if node in fleet.slow(name):
            value, median = fleet.record(node)["figures"][name], fleet.median[name]
            against = f"the median of the nodes is {figure.tell(median)}"
            yield f"{figure.title} {figure.tell(value)}, {against} ({value / median:.0%}): {figure.advice}"


def fewer(node: str, fleet: Fleet) -> Iterator[str]:
    """Less of something than most nodes have."""
    for name, title in COUNTS.items():
        value, usual = fleet.record(node).get("counts", {}).get(name), fleet.usual.get(name)
        if value is not None and usual is not None and value < usual:
            yield f"{value:g} {title}, most nodes have {usual:g}: compare `nvidia-smi` and `ibstat` with another node's"


def other_versions(node: str, fleet: Fleet) -> Iterator[str]:
    """Another version than most nodes have."""
    for name in VERSIONS:
        yield from _version(node, fleet, name)


def skewed(node: str, fleet: Fleet) -> Iterator[str]:
    """Its clock is off by more than SKEW_SECONDS, the error of the measurement not counted."""
    clock = fleet.record(node).get("clock", {})
    if fleet.clock is None or clock.get("seconds") is None:
        return
    off = clock["seconds"] - fleet.clock
    if abs(off) - clock.get("error", 0.0) > SKEW_SECONDS:
        yield f"its clock is {abs(off):.1f} s {'ahead' if off > 0 else 'behind'}: look at chronyd or ntpd"


def other_kernel(node: str, fleet: Fleet) -> Iterator[str]:
    """Versions that may differ for a while."""
    for name in TOLD_VERSIONS:
        yield from _version(node, fleet, name)


def little_left(node: str, fleet: Fleet) -> Iterator[str]:
    """Memory or disk that is almost used up, compared with the others."""
    for name, title in FREE.items():
        value, usual = fleet.record(node).get("free", {}).get(name), fleet.usual.get(name)
        if value is not None and usual is not None and value < LITTLE * usual:
            yield f"{value / 2**30:.2g} GiB free {title}, {usual / 2**30:.2g} GiB are usual"


def held_back(node: str, fleet: Fleet) -> Iterator[str]:
    """GPUs whose clocks are held back right now, and memory errors of earlier days."""
    for gpu in fleet.record(node).get("gpus", []):
        reasons = int(gpu.get("throttle") or 0)
        if why := [text for bit, text in HELD_BACK.items() if reasons & bit]:
            clock, most = gpu.get("sm_clock") or 0, gpu.get("sm_clock_max") or 0
            yield f"GPU {gpu.get('index'):.0f} is held back by {', '.join(why)} ({clock:.0f} of {most:.0f} MHz)"
        if errors := gpu.get("ecc_aggregate"):
            yield f"GPU {gpu.get('index'):.0f} had {errors:.0f} uncorrected ECC errors in its life"


def gpus_unseen(node: str, fleet: Fleet) -> Iterator[str]:
    """nvidia-smi fails where Slurm gave no GPU: odd, but nobody's loss."""
    record = fleet.record(node)
    if record.get("gpu_error") and not record.get("gpus_given"):
        yield f"nvidia-smi fails ({record['gpu_error']})"


def late(node: str, fleet: Fleet) -> Iterator[str]:
    """It started too late to be measured with the others."""
    if fleet.record(node).get("late"):
        yield "it came too late for the measurements between nodes"


def _version(node: str, fleet: Fleet, name: str) -> Iterator[str]:
    usual = fleet.usual.get(name)
    record = fleet.record(node)
    value = record.get("versions", {}).get(name)
    if answered(record) and usual is not None and value != usual:
        yield f"{name} {value or 'is missing'}, most nodes have {usual}: install the same everywhere"


RULES: tuple[Rule, ...] = (
    no_answer,
    lost_gpus,
    memory_errors,
    unable,
    unreachable,
    mute,
    too_slow,
    fewer,
    other_versions,
    skewed,
)
NOTES: tuple[Rule, ...] = (other_kernel, little_left, held_back, gpus_unseen, late)

"""A node's GPUs and links, from nvidia-smi and /sys/class/infiniband; nothing where there are none."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

SECONDS = 60.0  # the driver's first start takes long where nothing keeps it loaded
FIELDS = {
    "index": "index",
    "name": "name",
    "driver": "driver_version",
    "ecc_volatile": "ecc.errors.uncorrected.volatile.total",
    "ecc_aggregate": "ecc.errors.uncorrected.aggregate.total",
    "sm_clock": "clocks.sm",
    "sm_clock_max": "clocks.max.sm",
    "throttle": "clocks_throttle_reasons.active",
}
TEXTS = {"name", "driver"}
RENAMED = {"clocks_throttle_reasons.active": "clocks_event_reasons.active"}  # drivers since 535 have both names
LOST = re.compile(r"GPU is lost|Unable to determine the device handle|ERR!|Unknown Error", re.IGNORECASE)
INFINIBAND = Path("/sys/class/infiniband")


def gpu_facts() -> dict[str, Any]:
    """gpus: one record each; counts of them and of active NVLink links; gpu_error: why nvidia-smi fails, if it does."""
    if shutil.which("nvidia-smi") is None:
        return {}
    text, error = _query(list(FIELDS.values()))
    if "not a valid field" in text + (error or ""):
        text, error = _query([RENAMED.get(field, field) for field in FIELDS.values()])
    gpus = parse_gpus(text) if not error else []
    links = _nvidia_smi("nvlink", "-s")[0]
    counts = {"gpus": len(gpus), **({"nvlinks": count_links(links)} if "Link " in links else {})}
    return {"gpus": gpus, "counts": counts, "gpu_error": error or lost(text)}


def parse_gpus(text: str) -> list[dict[str, Any]]:
    """Lines of `nvidia-smi --query-gpu=FIELDS --format=csv,noheader,nounits`; what a GPU does not tell is None.

    A lost GPU has no line, or one of errors; it does not count.
    """
    rows = [[cell.strip() for cell in line.split(",")] for line in text.splitlines() if line.strip()]
    whole = [dict(zip(FIELDS, row, strict=True)) for row in rows if len(row) == len(FIELDS)]
    return [
        {name: _text(cell) if name in TEXTS else _number(cell) for name, cell in row.items()}
        for row in whole
        if not any(LOST.search(cell) for cell in row.values())
    ]


def lost(text: str) -> str | None:
    """The line that tells of a GPU that is gone, although nvidia-smi ended well."""
    return next((line.strip() for line in text.splitlines() if LOST.search(line)), None)


def count_links(text: str) -> int:
    """Active links of `nvidia-smi nvlink -s`; the others are told as <inactive>."""
    return len(re.findall(r"Link \d+: [\d.]+ GB/s", text))


def infiniband_counts(root: Path = INFINIBAND) -> dict[str, float]:
    """Ports that are active, and the Gbit/s of their links together; nothing on a machine without any port."""
    ports = [(_line(port / "state"), _line(port / "rate")) for port in sorted(root.glob("*/ports/*"))]
    active = [rate for state, rate in ports if "ACTIVE" in state]
    rates = [float(found[0]) for rate in active if (found := re.match(r"[\d.]+", rate))]
    return {"infiniband_ports": len(active), "infiniband_gbit": sum(rates)} if ports else {}


def gpus_given(environment: Mapping[str, str]) -> int | None:
    """How many GPUs Slurm gave this task; None where it did not say."""
    listed = environment.get("CUDA_VISIBLE_DEVICES")
    if listed is not None:
        return len([word for word in listed.split(",") if word.strip()])
    count = environment.get("SLURM_GPUS_ON_NODE", "")
    return int(count) if count.isdecimal() else None


def _query(fields: list[str]) -> tuple[str, str | None]:
    return _nvidia_smi(f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits")


def _nvidia_smi(*words: str) -> tuple[str, str | None]:
    """Standard output, and why it failed if it did."""
    try:
        done = subprocess.run(["nvidia-smi", *words], capture_output=True, text=True, timeout=SECONDS)
    except (OSError, subprocess.TimeoutExpired) as error:
        return "", str(error)
    told = (done.stderr.strip() or done.stdout.strip() or f"exit code {done.returncode}").splitlines()
    return done.stdout, told[-1] if done.returncode else None


def _number(cell: str) -> float | None:
    """A number, decimal or 0x...; None for [N/A], [Not Supported] and their like."""
    try:
        return float(int(cell, 16)) if cell.startswith("0x") else float(cell)
    except ValueError:
        return None


def _text(cell: str) -> str | None:
    return None if cell.startswith("[") or cell == "N/A" else cell


def _line(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""

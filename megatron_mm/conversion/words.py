"""What the conversions' verbs say, and sizes as people write them. Loads no torch."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from typing import Any

UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def readable_import(told: dict[str, Any]) -> str:
    """An import's record for people."""
    lines = []
    for each in told["sources"]:
        lines.append(
            f"{each['path']}: {each['tensors']} tensors of format {each['format']} -> {', '.join(each['parts'])}"
        )
        lines += [f"  left out {names}: {why}" for names, why in _together(each["ignored"])]
        lines += [f"  not read: {name}, since {why}" for name, why in each["unused"].items()]
        lines += [f"  filled up with zeros: {name}" for name in each["padded"]]
    if told["drawn"]:
        lines.append(f"not in it, so that training draws it: {', '.join(told['drawn'])}")
    done = f"{told['bytes']:,} bytes -> {told['checkpoint']}" if told["checkpoint"] else f"{told['bytes']:,} bytes"
    return "\n".join([*lines, done, f"to start from it: stages.{told['stage']}.start={told['run']}"])


def readable_export(told: dict[str, Any]) -> str:
    """An export's record for people."""
    said = f"{told['tensors']} tensors, {told['bytes']:,} bytes of {told['dtype']}, in {len(told['files'])} file(s)"
    constants = told["constants"]
    lines = [f"  {names}: {why}" for names, why in _together(dict.fromkeys(constants, "no weight of the model"))]
    return "\n".join([f"{said} -> {told['out']}", *lines, *told["notes"]])


def readable_interpolation(told: dict[str, Any]) -> str:
    """An interpolation's record for people."""
    trained, backbone = (":".join(told[side].values()) for side in ("trained", "backbone"))
    formula = f"{told['weight']:g} * {trained} + {1 - told['weight']:g} * {backbone}"
    done = f"{told['bytes']:,} bytes" + (f" -> {told['checkpoint']}" if told["checkpoint"] else "")
    what = f"{formula}: {told['mixed']} weights of {', '.join(told['parts'])}; {told['kept']} more as they were trained"
    return "\n".join([what, done, f"to judge it: megavlm eval {told['run']} --stage {told['stage']} --suite SUITE"])


def _together(reasons: dict[str, str]) -> Iterator[tuple[str, str]]:
    """Names and reason, one name in place of those that differ in their numbers alone."""
    alike: dict[tuple[str, str], list[str]] = {}
    for name, why in reasons.items():
        alike.setdefault((re.sub(r"\d+", "N", name), why), []).append(name)
    for (pattern, why), names in alike.items():
        yield (names[0] if len(names) == 1 else f"{len(names)} x {pattern}"), why


def readable_verify(told: dict[str, Any]) -> str:
    """A comparison's record for people."""
    if told["differences"]:
        rows = [f"{each['parameter']} ({', '.join(each['published'])}): {each['why']}" for each in told["differences"]]
        return "\n".join(["they differ:", *rows])
    logits = told["logits"]
    said = f"; logits differ by {logits['largest_difference']:.1e} of {logits['largest_logit']:.1f}" if logits else ""
    return f"every weight of {', '.join(told['parts'])} is what was published{said}"


def size(text: str) -> int:
    """Bytes of "5GB", "512MiB", "1000"; raises ArgumentTypeError."""
    found = re.fullmatch(r"(\d+)\s*([KMG]i?B)?", text, re.IGNORECASE)
    if not found:
        raise argparse.ArgumentTypeError(f"'{text}' is no size: write 5GB, 512MiB or a number of bytes")
    return int(found[1]) * UNITS[(found[2] or "").upper()]

"""What a forecast does not know."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from .measure import Measured


def caveats(runs: Sequence[Measured], lacking: Collection[str], workers: int) -> list[str]:
    """A sentence for each; `lacking` are the stages that could not run."""
    largest, out = runs[-1], []
    if len(runs) == 1:
        out.append("one shard was tried: what is paid once and how memory grows cannot be told")
    if any(reason.startswith("duplicate") for one in largest.stages.values() for reason in one.dropped):
        out.append("of duplicates a sample finds fewer than there are: both of a pair are rarely drawn")
    if largest.shards < workers:
        out.append(f"{largest.shards} of {workers} workers had something to do; side by side they may be slower")
    for name, one in largest.stages.items():
        if one.start is None:
            out.append(f"stage '{name}' was interrupted: what its start takes is not measured")
        if one.peak is None:
            out.append(f"stage '{name}': nobody measured its memory (workers on other machines, or no Linux)")
    for name in lacking:
        stand_in = name in largest.stages
        what = "had a stand-in: what the stages after it keep" if stand_in else "was left out: that it keeps all"
        out.append(f"stage '{name}' {what} is a guess")
    return out

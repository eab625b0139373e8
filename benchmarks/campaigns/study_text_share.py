"""Campaign: the study text-share in full. `make campaign NAME=study_text_share` writes study_text_share.md.

Exits with 3 when SFT without text loses fewer than 20 points of the text task, when no share keeps all of it, or when
of two variants whose text scores are a point apart the better one has the higher KL; and as every study's campaign.
"""

from __future__ import annotations

import itertools
import sys
from pathlib import Path
from typing import Any

from studied import campaign

LOST = 0.20  # of the text task, by SFT without text
APART = 0.01  # what is closer is a matter of single items
WORDS = (
    "without text 20 points of the text task are lost and more, at some share none; KL falls where text is a point up"
)


def unkept(table: dict[str, Any]) -> list[str]:
    """What of that does not hold, in words."""
    found = {row["variant"]: {key: score["value"] for key, score in row["scores"].items()} for row in table["rows"]}
    change = {name: scores["text_change"] for name, scores in found.items()}
    without = change.pop(table["reference"])
    told = [f"without text the text task changes by {without:+.3f}"] if without > -LOST else []
    told += [f"the best share changes it by {max(change.values()):+.3f}"] if max(change.values()) < 0 else []
    for worse, better in itertools.permutations(found, 2):
        is_apart = found[better]["text"] - found[worse]["text"] >= APART
        if is_apart and found[better]["kl"] >= found[worse]["kl"]:
            told.append(f"{better} keeps more text than {worse}, and has the higher KL")
    return told


if __name__ == "__main__":
    sys.exit(campaign("text-share", Path(__file__), (WORDS, unkept)))

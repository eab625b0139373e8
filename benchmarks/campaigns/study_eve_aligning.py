"""Campaign: the study eve-aligning in full. `make campaign NAME=study_eve_aligning` writes study_eve_aligning.md.

Exits with 3 when a variant saw more samples than another, or answers fewer than three times as many as by chance.
"""

from __future__ import annotations

import sys
from pathlib import Path

from studied import campaign

if __name__ == "__main__":
    sys.exit(campaign("eve-aligning", Path(__file__)))

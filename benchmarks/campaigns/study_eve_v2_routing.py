"""Campaign: the study eve-v2-routing in full. `make campaign NAME=study_eve_v2_routing` writes study_eve_v2_routing.md.

Exits with 3 when a variant saw more samples than another, or answers fewer than three times as many as by chance.
"""

from __future__ import annotations

import sys
from pathlib import Path

from studied import campaign

if __name__ == "__main__":
    sys.exit(campaign("eve-v2-routing", Path(__file__)))

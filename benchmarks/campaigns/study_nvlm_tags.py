"""Campaign: the study nvlm-tags in full. `make campaign NAME=study_nvlm_tags` writes study_nvlm_tags.md.

Exits with 3 when a variant saw more samples than another, or answers fewer than three times as many as by chance.
"""

from __future__ import annotations

import sys
from pathlib import Path

from studied import campaign

if __name__ == "__main__":
    sys.exit(campaign("nvlm-tags", Path(__file__)))

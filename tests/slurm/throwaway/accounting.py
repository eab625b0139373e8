"""slurmdbd and its MariaDB."""

from __future__ import annotations


class Accounting:
    pass

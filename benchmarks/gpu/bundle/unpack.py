"""Unpacks the bundle beside this file into a folder, once; refuses an archive that is not the manifest's."""

from __future__ import annotations

import hashlib
import json
import sys
import tarfile
from pathlib import Path

ARCHIVE = "tree.tar.xz"


def main(into: Path) -> int:
    bundle = Path(__file__).resolve().parent
    wanted = json.loads((bundle / "MANIFEST.json").read_text())["files"][ARCHIVE]
    done = into / "unpacked.txt"
    if done.exists() and done.read_text() == wanted:
        return 0
    with (bundle / ARCHIVE).open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != wanted:
        print(f"{ARCHIVE} is {found}, not {wanted} as MANIFEST.json says", file=sys.stderr)
        return 1
    with tarfile.open(bundle / ARCHIVE) as archive:
        archive.extractall(into, filter="data")
    done.write_text(wanted)
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))

"""Whether the sandbox works here: by starting it, and looking from inside whether its walls stand."""

from __future__ import annotations

import json
import platform
import shutil
import sys
import tempfile
from pathlib import Path

from ..errors import ConfigError, MegaVLMError
from . import seccomp
from .limits import Limits
from .process import run

INSTALL = "apt-get install bubblewrap (Red Hat: dnf install bubblewrap)"
HELD = 77  # the probe's exit status when every wall stood

# setting -> (value that forbids, how to allow it); what a kernel does not have is not there
USER_NAMESPACES = {
    "kernel.unprivileged_userns_clone": ("0", "as root: sysctl -w kernel.unprivileged_userns_clone=1"),
    "user.max_user_namespaces": ("0", "as root: sysctl -w user.max_user_namespaces=15000"),
    "kernel.apparmor_restrict_unprivileged_userns": (
        "1",
        "as root, an AppArmor profile that lets bwrap make user namespaces: docs/sandbox.md, Ubuntu 24.04",
    ),
}

PROBE = f"""
import json, os, socket, sys
asked = json.load(sys.stdin)
open_walls = []
def stands(what, attempt):
    try:
        attempt()
    except OSError:
        return
    open_walls.append(what)
stands("network", lambda: socket.create_connection(("127.0.0.1", 9), 1))
stands("sockets", lambda: socket.socket(socket.AF_UNIX))
stands("files of the host", lambda: open(asked["file"]))
stands("/etc", lambda: os.listdir("/etc"))
stands("writing", lambda: open("/planted", "w"))
stands("writing to /usr", lambda: open("/usr/planted", "w"))
stands("processes", os.fork)
if asked["variable"] in os.environ:
    open_walls.append("environment")
print(", ".join(open_walls))
sys.exit(1 if open_walls else {HELD})
"""


def available() -> str | None:
    """None where programs can run in the sandbox; otherwise why not, in one line. Takes a tenth of a second."""
    if missing := _missing():
        return missing
    with tempfile.TemporaryDirectory() as folder:
        secret = Path(folder, "secret")
        secret.write_text("for nobody in the sandbox")
        asked = {"file": str(secret), "variable": "PATH"}
        try:
            ended = run(PROBE, stdin=json.dumps(asked).encode(), limits=Limits(seconds=30))
        except MegaVLMError as error:
            return error.what
    if ended.code == HELD:
        return None
    return f"the sandbox does not hold: {ended.stdout.strip() or f'its probe ended with {ended.code}'}"


def require() -> None:
    """Raise ConfigError, with what to do, where `available` says why not. Call it before anything costly."""
    if reason := available():
        raise ConfigError(
            f"model-written code runs in a sandbox only, and there is none: {reason}", where="bwrap", fix=remedy()
        )


def remedy() -> str:
    """What makes the sandbox available: the line to run."""
    if not shutil.which("bwrap"):
        return INSTALL
    for name, (forbids, line) in USER_NAMESPACES.items():
        setting = Path("/proc/sys", *name.split("."))
        if setting.exists() and setting.read_text().strip() == forbids:
            return line
    return "see docs/sandbox.md: containers, user namespaces"


def _missing() -> str | None:
    if sys.platform != "linux":
        return f"bubblewrap needs Linux, this is {sys.platform}"
    if absent := [name for name in ("bwrap", "prlimit") if not shutil.which(name)]:
        return f"not on PATH: {', '.join(absent)}"
    return None if seccomp.known() else f"there is no list of system calls for {platform.machine()}"

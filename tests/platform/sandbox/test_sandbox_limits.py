"""Programs that use up what they can, and sandboxes whose owner is gone."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from megavlm.platform import doctor
from megavlm.platform.errors import ConfigError
from megavlm.platform.sandbox import Limits, available, require, run, started
from megavlm.platform.sandbox.checks import remedy

ROOT = Path(__file__).resolve().parents[3]
MIB = 1 << 20

pytestmark = pytest.mark.skipif(not shutil.which("bwrap"), reason="bubblewrap is not installed")


def processes_saying(mark: str) -> list[int]:
    """Processes of the whole machine with `mark` in their command line."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if mark.encode() in (folder / "cmdline").read_bytes():
                found.append(int(folder.name))
        except OSError:
            continue
    return found


def comes_true(what: Callable[[], bool], seconds: float = 20) -> bool:
    until = time.monotonic() + seconds
    while not (true := what()) and time.monotonic() < until:
        time.sleep(0.02)
    return true


@pytest.fixture
def mark() -> Iterator[str]:
    """A word that only this test's sandboxes have among their arguments; whatever is left of them is ended."""
    word = f"sandbox-test-{os.getpid()}-{time.monotonic_ns()}"
    yield word
    for number in processes_saying(word):
        os.kill(number, signal.SIGKILL)


@pytest.mark.parametrize("program", ["while True: pass", "import time; time.sleep(600)"])
def test_a_program_outlives_neither_its_time_nor_the_block(program, mark):
    ended = run(program, limits=Limits(seconds=0.5))
    assert ended.code is None and 0.5 <= ended.seconds < 5
    for _ in range(5):  # at once: the moment at which its owner leaves it must not matter
        with started(program, mark, limits=Limits(seconds=60)):
            assert len(processes_saying(mark)) >= 2
        assert comes_true(lambda: not processes_saying(mark))


def test_cpu_seconds_end_it_where_nobody_watches():
    with started("while True: pass", limits=Limits(seconds=0.5)) as process:
        assert process.wait(60) == 128 + signal.SIGXCPU or process.returncode == 128 + signal.SIGKILL


def test_memory_is_limited():
    ended = run("x = bytearray(300 << 20)", limits=Limits(memory=256 * MIB))
    assert ended.code == 1 and "MemoryError" in ended.stderr
    assert run("x = bytearray(300 << 20)", limits=Limits(memory=512 * MIB)).code == 0


FILL = """
import os
total = 0
try:
    for n in range(100):
        with open(f"/work/{n}", "wb", buffering=0) as file:
            while total < 64 << 20:
                total += file.write(bytes(1 << 18))
except OSError as error:
    print(total, type(error).__name__)
"""


def test_the_disk_is_limited():
    """One file meets the limit of a file, many that of the folder: neither passes the size by more than one write."""
    for program in (FILL, FILL.replace("while total < 64 << 20:", "for _ in range(4):")):
        total, error = run(program, limits=Limits(work=4 * MIB)).stdout.split()
        assert error == "OSError" and 3 * MIB < int(total) <= 4 * MIB
    without = run("open('/work/file', 'w')", limits=Limits(work=0))
    assert without.code == 1 and "Read-only file system" in without.stderr


def test_open_files_are_limited():
    ended = run("kept = [open('/dev/null') for _ in range(100)]", limits=Limits(files=32))
    assert ended.code == 1 and "Too many open files" in ended.stderr


BOMB = """
import os, sys
started = 0
for _ in range(1000):
    try:
        if not os.fork():
            while True: pass
        started += 1
    except OSError:
        pass
print(started)
"""


def test_a_fork_bomb_starts_nothing():
    assert run(BOMB).stdout == "0\n"


OWNER = """
import sys
from megavlm.platform.sandbox import Limits, started
print("starts", flush=True)
program = "print('up', flush=True); import time; time.sleep(600)"
with started(program, sys.argv[1], limits=Limits(), talks=True) as inside:
    print(inside.stdout.readline().decode(), end="", flush=True)
    sys.stdin.read()
"""


@contextlib.contextmanager
def owner_of_one(mark: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process that starts a sandbox and is killed at the end of the block; it says "starts", and "up" from inside."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    words = [sys.executable, "-c", OWNER, mark]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment) as owner:
        assert owner.stdout and owner.stdout.readline() == b"starts\n"
        yield owner
        owner.kill()


def test_nothing_is_left_of_it_when_its_owner_is_killed(mark):
    with owner_of_one(mark) as owner:
        assert owner.stdout and owner.stdout.readline() == b"up\n"
        assert len(processes_saying(mark)) >= 3  # the owner, bwrap, the program
    assert comes_true(lambda: not processes_saying(mark))


@pytest.mark.parametrize("delay", [0.0, 0.01, 0.02, 0.03, 0.05])
def test_nothing_is_left_of_it_either_when_its_owner_is_killed_while_it_starts(delay, mark):
    with owner_of_one(mark):
        time.sleep(delay)
    assert comes_true(lambda: not processes_saying(mark))


NOBODY = ["--reuid=65534", "--regid=65534", "--clear-groups", "--bounding-set=-all"]
# What Docker leaves a container's root (moby, oci/caps/defaults.go)
DOCKER = (
    "chown dac_override fsetid fowner mknod net_raw setgid setuid setfcap setpcap net_bind_service sys_chroot kill "
    "audit_write"
)
DOCKER_ROOT = ["--bounding-set=-all,+" + ",+".join(DOCKER.split())]


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become somebody else; others run everything here as such")
@pytest.mark.skipif(not Path("/usr/bin/python3").exists(), reason="an interpreter that everybody may run")
@pytest.mark.parametrize(("who", "uid"), [(NOBODY, 65534), (DOCKER_ROOT, 0)], ids=["nobody", "root in a container"])
def test_others_have_it_too(who, uid):
    """Under the system's interpreter, since root's own may lie where others cannot look."""
    program = "from megavlm.platform.sandbox import available; import os; print(os.getuid(), available())"
    with tempfile.TemporaryDirectory() as folder:
        package = Path(folder, "megavlm", "platform")
        shutil.copytree(ROOT / "platform" / "sandbox", package / "sandbox")
        shutil.copy(ROOT / "platform" / "errors.py", package)
        for path in (Path(folder), *Path(folder).rglob("*")):
            path.chmod(0o755)
        words = ["setpriv", "--inh-caps=-all", *who, "/usr/bin/python3", "-c", program]
        environment = {"PYTHONPATH": folder, "PATH": os.environ["PATH"], "PYTHONDONTWRITEBYTECODE": "1"}
        done = subprocess.run(words, env=environment, cwd="/", capture_output=True, text=True, timeout=60)
    assert done.stdout == f"{uid} None\n", done


def test_without_the_tool_there_is_no_sandbox_and_a_line_to_run(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert available() == "not on PATH: bwrap, prlimit"
    with pytest.raises(ConfigError) as refused:
        require()
    assert refused.value.fix == remedy() and "apt-get install bubblewrap" in str(refused.value.fix)
    with pytest.raises(FileNotFoundError):
        run("print('outside')")
    assert doctor.sandbox() == doctor.Finding("missing", "not on PATH: bwrap, prlimit")


NO_WALLS = f"""#!{sys.executable}
import os, sys
words = sys.argv
program = f"/proc/self/fd/{{words[words.index('--ro-bind-data') + 1]}}"
at = words.index("-c")
os.execv(sys.executable, [sys.executable, "-c", words[at + 1].replace("/program.py", program), *words[at + 2 :]])
"""


def test_a_sandbox_that_does_not_start_or_hold_is_none(monkeypatch, tmp_path):
    """A bwrap that is refused its namespaces says so and fails; one that runs the program outside is found out."""
    bwrap = tmp_path / "bwrap"
    bwrap.write_text("#!/bin/sh\necho 'bwrap: No permissions to create new namespace' >&2\nexit 1\n")
    bwrap.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert available() == "the sandbox does not start: bwrap: No permissions to create new namespace"
    bwrap.write_text(NO_WALLS)
    said = str(available())
    assert said.startswith("the sandbox does not hold: ")
    assert {"sockets", "files of the host", "/etc", "processes"} <= set(said.split(": ")[1].split(", "))


@pytest.mark.parametrize("bad", [{"seconds": -1.0}, {"seconds": float("inf")}, {"memory": -1}])
def test_limits_that_are_none_are_refused(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        Limits(**bad)

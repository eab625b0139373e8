"""Programs that try to get out of the sandbox, each by a way of its own, and the layers one without the other."""

from __future__ import annotations

import json
import os
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from megavlm.platform.sandbox import Limits, available, listen, run, started

SHORT = Limits(seconds=20)
SECRET = "what nobody inside may read"

pytestmark = pytest.mark.skipif(not shutil.which("bwrap"), reason="bubblewrap is not installed")


def attempts(ways: dict[str, str], *, filtered: bool = True, **given: object) -> dict[str, str]:
    """Try all ways one after the other in one sandbox: way -> "in" where it got through, or what stopped it.

    A way may use `given`, `libc`, and `kernel(result)`, which raises what a call of libc left in errno.
    """
    program = (
        "import ctypes, json, os, signal, socket, sys\n"
        "ways, given = json.load(sys.stdin)\n"
        "libc = ctypes.CDLL(None, use_errno=True)\n"
        "def kernel(said):\n"
        "    if said < 0: raise OSError(ctypes.get_errno(), 'refused')\n"
        "for way, code in ways.items():\n"
        "    try:\n"
        "        exec(code)\n"
        "        said = 'in'\n"
        "    except BaseException as error:\n"
        "        said = type(error).__name__ + (f': {error}' if isinstance(error, AssertionError) else '')\n"
        "    print(json.dumps([way, said]))\n"
    )
    stdin = json.dumps([ways, given]).encode()
    with started(program, stdin=stdin, limits=SHORT, talks=True, filtered=filtered) as process:
        ended = listen(process, SHORT)
    assert ended.code == 0, ended
    said = dict(json.loads(line) for line in ended.stdout.splitlines())
    assert list(said) == list(ways)
    return said


def stopped(said: dict[str, str]) -> bool:
    """Whether the kernel stopped all of them; a mistake in a way itself (NameError, say) would stop nothing."""
    refusals = {"PermissionError", "FileNotFoundError", "NotADirectoryError", "OSError", "ConnectionRefusedError"}
    return bool(said) and set(said.values()) <= refusals


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    path = tmp_path / "secret"
    path.write_text(SECRET)
    path.chmod(0o644)
    return path


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[dict[str, object], list[bytes]]]:
    """Servers on the host by IPv4, IPv6, an abstract unix name and a unix path, and what they were ever sent."""
    met: list[bytes] = []
    addresses: dict[str, object] = {"abstract": f"\0sandbox-{os.getpid()}", "path": str(tmp_path / "socket")}
    sockets = [socket.create_server(("127.0.0.1", 0)), socket.create_server(("::1", 0), family=socket.AF_INET6)]
    addresses |= {"ipv4": sockets[0].getsockname()[1], "ipv6": sockets[1].getsockname()[1]}
    for name in ("abstract", "path"):
        sockets.append(socket.socket(socket.AF_UNIX))
        sockets[-1].bind(str(addresses[name]))
        sockets[-1].listen()
    for listening in sockets:
        threading.Thread(target=_serve, args=(listening, met), daemon=True).start()
    yield addresses, met
    for listening in sockets:
        listening.shutdown(socket.SHUT_RDWR)
        listening.close()


def _serve(listening: socket.socket, met: list[bytes]) -> None:
    try:
        while True:
            connection, _ = listening.accept()
            met.append(b"somebody came")
            connection.close()
    except OSError:
        return


CONNECT = {
    "ipv4": "socket.create_connection(('127.0.0.1', given['ipv4']), 5)",
    "ipv6": "socket.create_connection(('::1', given['ipv6']), 5)",
    "abstract": "socket.socket(socket.AF_UNIX).connect(given['abstract'])",
    "path": "socket.socket(socket.AF_UNIX).connect(given['path'])",
}


@pytest.mark.parametrize("filtered", [True, False], ids=["filtered", "namespaces alone"])
def test_no_server_of_the_host_is_reached(filtered, server):
    addresses, met = server
    assert stopped(attempts(CONNECT, filtered=filtered, **addresses))
    assert met == []
    for code in CONNECT.values():  # from outside the same lines reach them
        exec(code, {"socket": socket, "given": addresses})
    until = time.monotonic() + 10
    while len(met) < len(CONNECT) and time.monotonic() < until:
        time.sleep(0.01)
    assert len(met) == len(CONNECT)


def test_the_filter_refuses_sockets_of_every_kind():
    kinds = ("AF_INET", "AF_INET6", "AF_UNIX", "AF_NETLINK", "AF_PACKET", "AF_VSOCK")
    said = attempts({kind: f"socket.socket(socket.{kind}, socket.SOCK_DGRAM)" for kind in kinds})
    assert set(said.values()) == {"PermissionError"}


def test_without_the_filter_the_network_has_one_interface_and_it_reaches_nobody():
    interfaces = "assert [name for _, name in socket.if_nameindex()] == ['lo'], socket.if_nameindex()"
    assert attempts({"interfaces": interfaces}, filtered=False) == {"interfaces": "in"}


READ = {
    "secret": "open(given['secret']).read()",
    "shadow": "open('/etc/shadow').read()",
    "passwd": "open('/etc/passwd').read()",
    "home": "os.listdir(given['home'])",
    "repository": "os.listdir(given['repository'])",
    "processes": "os.listdir('/proc/1')",
    "tmp": "os.listdir('/tmp')",
    "run": "os.listdir('/run')",
    "sys": "os.listdir('/sys')",
    "disk": "os.open('/dev/vda', os.O_RDONLY)",
    "terminal": "os.open('/dev/tty', os.O_RDWR)",
    "up": "open('/work/../../../..' + given['secret']).read()",
    "link": "os.symlink(given['secret'], 'link')\nopen('link').read()",
    "inherited": "[os.read(number, 1) for number in range(3, 60)]",
}


@pytest.mark.parametrize("filtered", [True, False], ids=["filtered", "namespaces alone"])
def test_nothing_of_the_host_is_read(filtered, secret):
    places = {"secret": str(secret), "home": str(Path.home()), "repository": str(Path(__file__).parents[3])}
    assert stopped(attempts(READ, filtered=filtered, **places))


def test_the_parents_environment_stays_outside(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", SECRET)
    ended = run("import os, sys; print(dict(os.environ), sys.argv, os.getcwd())", limits=SHORT)
    assert ended.code == 0 and SECRET not in ended.stdout
    assert not [text for text in (os.environ["PATH"], str(Path.home())) if text in ended.stdout]


WRITE = {
    "root": "open('/planted', 'w')",
    "usr": "open('/usr/planted', 'w')",
    "dev": "open('/dev/planted', 'w')",
    "interpreter": "open(os.__file__, 'a')",
    "itself": "open('/program.py', 'a')",
    "remount": "kernel(libc.mount(b'none', b'/usr', None, 32 | 4096, None))",
    "mount": "kernel(libc.mount(b'tmpfs', b'/work', b'tmpfs', 0, None))",
    "chmod": "os.chmod('/usr', 0o777)",
    "device": "os.mknod('/work/disk', 0o60666, os.makedev(8, 0))",
}


@pytest.mark.parametrize("filtered", [True, False], ids=["filtered", "namespaces alone"])
def test_nothing_is_written_outside_of_the_work_folder(filtered):
    assert stopped(attempts(WRITE, filtered=filtered))


def test_the_work_folder_is_empty_every_time_and_may_be_written():
    ways = {"empty": "assert os.listdir('/work') == []", "write": "open('/work/file', 'w').write('x' * 1000)"}
    assert [set(attempts(ways).values()) for _ in range(2)] == [{"in"}, {"in"}]


CALLS = {
    "fork": "os.fork()",
    "thread": "import threading\nthreading.Thread(target=print).start()",
    "spawn": "import subprocess\nsubprocess.run(['/bin/true'], check=True)",
    "ptrace": "kernel(libc.ptrace(16, 1, None, None))",
    "user namespace": "kernel(libc.unshare(0x10000000))",
    "shared memory": "kernel(libc.shmget(0, 1 << 30, 0o1666))",
    "memory file": "os.memfd_create('x')",
    "process file": "os.pidfd_open(os.getpid())",
    "keyring": "kernel(libc.syscall(250, 0, -4, 1))",
    "io_uring": "kernel(libc.syscall(425, 1, None))",
    "root": "os.setuid(0)",
    "limit": "import resource\nresource.setrlimit(resource.RLIMIT_AS, (1 << 40, 1 << 40))",
}


def test_the_kernel_refuses():
    said = attempts(CALLS)
    # Python's own words for a thread that did not start and for a limit that may not rise; there is no user 0 inside
    assert [said.pop(way) for way in ("thread", "limit", "root")] == ["RuntimeError", "ValueError", "OSError"]
    assert set(said.values()) == {"PermissionError"}


def test_other_processes_cannot_be_signalled():
    """The first process of a namespace takes no signal from inside; those of the host have no number there."""
    ways = {"host": f"os.kill({os.getpid()}, signal.SIGKILL)", "first": "os.kill(1, signal.SIGKILL)", "after": "pass"}
    assert attempts(ways) == {"host": "ProcessLookupError", "first": "in", "after": "in"}


def test_it_works_here():
    assert available() is None


def test_a_program_tells_by_its_exit_status_and_its_output_is_capped():
    program = "import sys; sys.stderr.write('why'); sys.stdout.buffer.write(b'a\\0' + b'\\xff' * 10**7); sys.exit(7)"
    ended = run(program, limits=SHORT)
    assert (ended.code, ended.stderr) == (7, "why")
    assert ended.stdout == "a\0" + "�" * (SHORT.output - 2)


def test_no_capability_is_left_and_none_can_be_gained():
    """PR_GET_NO_NEW_PRIVS is 1, and no capability is in the bounding set (PR_CAPBSET_READ)."""
    ways = {
        "gain": "assert libc.prctl(39, 0, 0, 0, 0) == 1",
        "bounds": "assert not [n for n in range(38) if libc.prctl(23, n, 0, 0, 0)]",
        "user": "assert (os.getuid(), os.geteuid(), os.getgid()) == (65534,) * 3 and set(os.getgroups()) <= {65534}",
    }
    assert set(attempts(ways).values()) == {"in"}

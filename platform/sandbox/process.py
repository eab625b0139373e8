"""Starts programs in the sandbox, one process each, and ends them."""

from __future__ import annotations

import contextlib
import fcntl
import os
import selectors
import subprocess
import time
from collections.abc import Iterator, Sequence
from typing import IO, NamedTuple

from ..errors import MegaVLMError
from . import bubblewrap, seccomp
from .gate import Gate
from .limits import Limits

SEALS = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
MEMORY = os.MFD_ALLOW_SEALING | os.MFD_CLOEXEC
START = 60.0  # seconds that bwrap and Python may take on a busy node; they do not count as the program's


class Ended(NamedTuple):
    """How a sandbox ended. The texts are the program's own words: never believe them.

    code: the program's exit status, 128 + n where signal n killed it; None where its time was over. A program chooses
        it freely, so 0 says no more than that it ended so.
    """

    code: int | None
    stdout: str
    stderr: str
    seconds: float


def run(program: str, *, stdin: bytes = b"", limits: Limits | None = None) -> Ended:
    """Run one Python program, a text, to its end. Raises FileNotFoundError where bwrap or prlimit is missing."""
    limits = limits or Limits()
    with started(program, stdin=stdin, limits=limits, talks=True) as process:
        return listen(process, limits)


@contextlib.contextmanager
def started(
    program: str,
    *arguments: str,
    limits: Limits,
    stdin: bytes = b"",
    fds: Sequence[int] = (),
    talks: bool = False,
    filtered: bool = True,
) -> Iterator[subprocess.Popen[bytes]]:
    """A sandbox running `program`; killed with all in it when the block, the calling thread or our process ends.

    fds: open in the program under the same numbers. talks: whether stdout and stderr are pipes or thrown away.
    filtered: False leaves the seccomp filter out, to test what the other walls hold alone.
    Raises FileNotFoundError (no bwrap), MegaVLMError (it did not start): then no line of the program has run.
    """
    output, gate = subprocess.PIPE if talks else subprocess.DEVNULL, Gate()
    with _sealed(program.encode(), stdin, seccomp.filter_program()) as (code, given, rules):
        try:
            words = bubblewrap.command(
                arguments, limits, program=code, gate=gate.inside, seccomp=rules if filtered else None
            )
            kept = (code, *gate.inside, *fds, *((rules,) if filtered else ()))
            process = subprocess.Popen(words, stdin=given, stdout=output, stderr=output, env={}, cwd="/", pass_fds=kept)
        finally:
            gate.leave_inside()
    with process:
        try:
            if not gate.opened(START):
                raise _not_started(process, limits)
            yield process
        finally:
            process.kill()


def _not_started(process: subprocess.Popen[bytes], limits: Limits) -> MegaVLMError:
    said = ""
    if process.stdout:
        ended = listen(process, limits)
        said = next(reversed(ended.stderr.strip().splitlines()), f"it ended with {ended.code}")
    return MegaVLMError(f"the sandbox does not start: {said}".rstrip(" :"), where="bwrap", fix="megavlm doctor")


def listen(process: subprocess.Popen[bytes], limits: Limits) -> Ended:
    """Wait for the end with both pipes read, and kill it when its time is over."""
    begun = time.monotonic()
    until = begun + limits.seconds
    assert process.stdout and process.stderr
    texts: dict[IO[bytes], bytearray] = {process.stdout: bytearray(), process.stderr: bytearray()}
    _drain(texts, until, limits.output)
    try:
        code = process.wait(max(0.0, until - time.monotonic()))
    except subprocess.TimeoutExpired:
        process.kill()
        code = None
    out, err = (bytes(text).decode(errors="replace") for text in texts.values())
    return Ended(code, out, err, time.monotonic() - begun)


def _drain(texts: dict[IO[bytes], bytearray], until: float, most: int) -> None:
    """Read until both pipes end or the time is over; what comes after `most` bytes is thrown away."""
    with selectors.DefaultSelector() as waiting:
        for pipe in texts:
            waiting.register(pipe, selectors.EVENT_READ)
        while waiting.get_map() and (left := until - time.monotonic()) > 0:
            for key, _ in waiting.select(left):
                chunk = os.read(key.fd, 1 << 16)
                text = texts[key.fileobj]  # type: ignore[index]
                text += chunk[: most - len(text)]
                if not chunk:
                    waiting.unregister(key.fileobj)


@contextlib.contextmanager
def _sealed(*contents: bytes) -> Iterator[list[int]]:
    """File descriptors to read `contents` from, in memory and closed to every change."""
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context(os.fdopen(os.memfd_create("sandbox", MEMORY), "w+b")) for _ in contents]
        for file, content in zip(files, contents, strict=True):
            file.write(content)
            file.seek(0)
            fcntl.fcntl(file, fcntl.F_ADD_SEALS, SEALS)
        yield [file.fileno() for file in files]

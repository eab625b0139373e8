from __future__ import annotations

import io
import os
import pty
import subprocess
import sys

import pytest

from megavlm.platform.progress import Heartbeat, progress


class Clock:
    """Seconds that pass only when told."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_one_line_every_so_many_seconds_and_one_at_the_end():
    out, clock = io.StringIO(), Clock()
    beat = Heartbeat(total=40, label="embed", unit="image", every=10, stream=out, clock=clock)
    beat.start()
    for _ in range(20):
        clock.now += 1
        beat.advance(2)
    beat.stop()
    assert out.getvalue().splitlines() == [
        "embed: 20/40 images, 10.0 s, 2/s, 10 s left",
        "embed: 40/40 images, 20.0 s, 2/s, 0 s left",
        "embed: 40/40 images, 20.0 s, 2/s",
    ]


def test_an_unknown_total_shows_no_end():
    out, clock = io.StringIO(), Clock()
    beat = Heartbeat(total=None, label="scan", unit="file", every=1, stream=out, clock=clock)
    clock.now += 2
    beat.advance(4)
    assert out.getvalue() == "scan: 4 files, 2.0 s, 2/s\n"


def test_a_line_among_the_heartbeats_is_one_itself():
    out, clock = io.StringIO(), Clock()
    beat = Heartbeat(total=40, label="train", unit="step", every=10, stream=out, clock=clock)
    clock.now += 9
    beat.tell("loss 1.5", warn=False)
    clock.now += 9
    beat.advance(1)
    assert out.getvalue() == "train: loss 1.5\n"


def test_items_pass_unchanged_and_lines_go_to_stderr(capsys, monkeypatch):
    monkeypatch.delenv("MEGAVLM_QUIET", raising=False)
    assert list(progress(iter("abc"), label="letters", unit="letter")) == ["a", "b", "c"]
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("letters: 3 letters, ")


def test_quiet_says_nothing(capsys, monkeypatch):
    monkeypatch.setenv("MEGAVLM_QUIET", "1")
    with progress(total=2, label="x") as bar:
        bar.advance(2)
        bar.tell("a line")
    assert list(progress([1, 2])) == [1, 2]
    assert capsys.readouterr() == ("", "")


def test_leaving_the_loop_early_still_ends_the_display(capsys, monkeypatch):
    monkeypatch.delenv("MEGAVLM_QUIET", raising=False)
    items = iter(progress(range(5), label="some"))
    next(items), next(items)
    items.close()
    assert capsys.readouterr().err.startswith("some: 1/5 items")


@pytest.mark.parametrize(
    ("environment", "bar", "colour"),
    [({}, True, True), ({"NO_COLOR": "1"}, True, False), ({"TERM": "dumb"}, False, False)],
)
def test_on_a_terminal(environment, bar, colour):
    code = (
        "from megavlm.platform.progress import progress\n"
        "for _ in progress(range(3), label='work', unit='thing'): pass\n"
        "with progress(total=1, label='y') as bar: bar.tell('a [line] of 12', warn=True)"
    )
    master, terminal = pty.openpty()
    variables = {
        key: value for key, value in os.environ.items() if key not in {"NO_COLOR", "MEGAVLM_QUIET", "FORCE_COLOR"}
    }
    variables |= {"TERM": "xterm-256color", **environment}
    subprocess.run([sys.executable, "-c", code], stderr=terminal, env=variables, check=True, timeout=60)
    os.close(terminal)
    text = b""
    try:
        while chunk := os.read(master, 65536):
            text += chunk
    except OSError:  # Linux says so when the other end is closed
        pass
    os.close(master)
    assert b"a [line] of 12" in text and (b"\x1b[33ma [line]" in text) == colour
    assert (b"3/3" in text) and (b"things" in text)
    assert ("━".encode() in text) == bar
    assert (b"\x1b[38;" in text or b"\x1b[3" in text) == colour

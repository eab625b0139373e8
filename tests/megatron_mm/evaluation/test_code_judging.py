"""Verdicts on programs, right and wrong ones, and on those that would pass without solving anything."""

from __future__ import annotations

import shutil
import socket
import time
from pathlib import Path

import pytest

from megavlm.megatron_mm.evaluation.code import Program, judge_code
from megavlm.platform import sandbox
from megavlm.platform.errors import ConfigError

ROOT = Path(__file__).resolve().parents[3]
SECONDS = 30.0
needs_bwrap = pytest.mark.skipif(not shutil.which("bwrap"), reason="bubblewrap is not installed")

PROMPT = '''from typing import List


def poly(xs: List[float], x: float) -> float:
    """Value at x of the polynomial with these coefficients."""
    return sum(c * x**i for i, c in enumerate(xs))


def root(xs: List[float]) -> float:
    """A root of a polynomial of degree one."""
'''
TESTS = """
import math
METADATA = {"author": "ours"}

def check(candidate):
    for xs in ([6.0, -2.0], [1.0, 4.0]):
        assert math.fabs(poly(xs, candidate(xs))) < 1e-9

check(root)
"""


def humaneval(completion: str, *, given: str = PROMPT) -> Program:
    return Program("p", PROMPT + completion, TESTS, given=given, entry_point="root")


def verdicts(*programs: Program) -> list[bool]:
    outcomes = judge_code(programs, seconds=SECONDS)
    assert all(bool(outcome.problem) != outcome.passed for outcome in outcomes), outcomes
    return [outcome.passed for outcome in outcomes]


def one_interpreter(program: Program) -> bool:
    """As published scorers judge: program and tests in one process (inside a sandbox, here), which must end with 0."""
    text = f"exec({program.text + chr(10) + program.tests!r}, {{}})"
    return sandbox.run(text, limits=sandbox.Limits(seconds=SECONDS)).code == 0


@needs_bwrap
def test_items_like_humaneval():
    right, wrong = "    return -xs[0] / xs[1]\n", "    return xs[0] / xs[1]\n"
    programs = [humaneval(right), humaneval(wrong), humaneval("    retur\n"), humaneval("    return root(xs)\n")]
    assert verdicts(*programs) == [one_interpreter(program) for program in programs] == [True, False, False, False]
    cheat = "    return 1.0\n\n\ndef poly(xs, x):\n    return 0.0\n"
    assert verdicts(humaneval(cheat), humaneval(right, given="")) == [False, True]
    assert one_interpreter(humaneval(cheat))


# Program and tests that it passes, with a line of dashes between.
MBPP = """
def sum(a, b):
    return __builtins__["sum"](d for d in range(1, min(a, b)) if a % d == b % d == 0)
---
assert sum(10, 15) == 6 and sum(100, 150) == 93

def common(a, b):
    return tuple(set(a) & set(b))
---
assert set(common((3, 4), (4, 5))) == set((4,))

class Pair:
    def __init__(self, a, b):
        self.a, self.b = a, b
def longest(pairs):
    return len([pair.a for pair in pairs])
---
assert longest([Pair(5, 24), Pair(15, 25)]) == 2
assert Pair(1, 2).b == 2

class Node:
    def __init__(self, n):
        self.next = None
def depth(node):
    return 0 if node is None else 1 + depth(node.next)
---
node = Node(1)
node.next = Node(2)
assert depth(node) == 2

def without(xs, kind):
    return [x for x in xs if not isinstance(x, kind)]
---
assert without((4, "a", 7.5), int) == ["a", 7.5]

def evens(n):
    yield from range(0, n, 2)
---
assert list(evens(7)) == [0, 2, 4, 6]

from collections import Counter as counts
---
assert counts("aab") == {"a": 2, "b": 1}

from collections import namedtuple
def point():
    return namedtuple("P", "x y")(1, 2)
---
assert point() == (1, 2)

from dataclasses import asdict, dataclass
@dataclass
class Box:
    x: "int | None" = None
def box():
    return asdict(Box())
---
assert box() == {"x": None}

def big():
    return 7 ** 9999
def nan():
    return float("nan")
---
assert big() == 7 ** 9999 and nan() != nan()

def f():
    return {}["x"]
---
try:
    f()
except KeyError:
    pass
else:
    assert False

def f():
    return 3
if __name__ == "__main__":
    raise SystemExit(1)
---
assert f() == 3
"""


@needs_bwrap
def test_items_like_mbpp():
    pairs = [item.split("---") for item in MBPP.split("\n\n")]
    assert verdicts(*(Program("p", text, tests) for text, tests in pairs)) == [True] * len(pairs)
    assert verdicts(*(Program("p", "pass", tests) for _, tests in pairs)) == [False] * len(pairs)


# Each under its name.
FORGED = """
# equals everything
class Yes:
    __eq__ = lambda self, other: True
def f(n):
    return Yes()

# a number that equals everything
class Yes(int):
    __eq__ = lambda self, other: True
def f(n):
    return Yes(0)

# ends with 0
import os
os._exit(0)

# ends with the status of a pass
import os
print("passed")
os._exit(100)

# ends when called
import os
def f(n):
    os._exit(100)

# exits
raise SystemExit(0)

# exits when called
def f(n):
    raise SystemExit(100)

# exits at the end
import atexit, os
atexit.register(os._exit, 100)

# turns errors off
import builtins, sys
builtins.AssertionError = type("Never", (BaseException,), {})
sys.excepthook = lambda *_: None
def f(n):
    return 0

# replaces the built-in functions
import builtins
def f(n):
    return 0
for name in ("exec", "compile", "open", "print", "isinstance", "type"):
    setattr(builtins, name, lambda *_, **__: True)

# replaces json
import json
json.dumps = lambda *_, **__: '{"value": true}'
def f(n):
    return 0

# replaces unittest
import unittest
unittest.main = unittest.TestCase.run = lambda *_, **__: None
def f(n):
    return 0

# changes its callers
import sys
sys.settrace(lambda *_: None)
def f(n):
    frame = sys._getframe()
    while frame := frame.f_back:
        frame.f_locals.clear()
        frame.f_globals.update(PASSED=100, FAILED=100)
    return 0

# writes answers everywhere
import os
for n in range(64):
    try:
        os.write(n, b'{"value": true}\\n' * 9)
    except OSError:
        pass
def f(n):
    return 0

# answers with an exit
import os
for n in range(3, 64):
    try:
        os.write(n, b'{"error": ["SystemExit", "100"]}\\n' * 9)
    except OSError:
        pass

# answers nonsense
import os
for n in range(3, 64):
    try:
        os.write(n, b'{"value": ["kept", -1]}\\n[]\\n\\n\\xff')
    except OSError:
        pass

# answers without end
def f(n):
    return "x" * (20 << 20)

# nests deeply
def f(n):
    x = []
    for _ in range(10**5):
        x = [x]
    return x

# kills everybody
import os, signal
try:
    os.kill(-1, signal.SIGKILL)
except ProcessLookupError:
    pass

# stays behind
import os
if os.fork():
    os._exit(0)
while True:
    pass

# looks for the tests
import gc, sys
def f(n):
    seen, frame = [open("/program.py").read(), *map(str, gc.get_objects())], sys._getframe()
    while frame := frame.f_back:
        seen.append(str(frame.f_locals))
    return 41 if "is_" + "it" in "".join(seen) else 0
"""
UNKNOWN = "is_it = 41\nassert f(2) == is_it"


def forged() -> list[Program]:
    pairs = (block.split("\n", 1) for block in FORGED.removeprefix("\n# ").split("\n\n# "))
    return [Program(name, text, UNKNOWN) for name, text in pairs]


@needs_bwrap
def test_no_pass_is_forged():
    outcomes = judge_code([*forged(), Program("solved", "def f(n):\n    return 41", UNKNOWN)], seconds=SECONDS)
    assert len(outcomes) > 20 and [outcome.id for outcome in outcomes if outcome.passed] == ["solved"]


@needs_bwrap
def test_some_of_them_pass_where_program_and_tests_share_an_interpreter():
    names = {"equals everything", "a number that equals everything", "ends with 0", "replaces unittest"}
    passed = {program.id for program in forged() if program.id in names and one_interpreter(program)}
    assert passed == names - {"replaces unittest"}


@needs_bwrap
def test_tests_that_exit_or_do_not_parse_are_no_pass():
    right = "def f(n):\n    return 41"
    tests = [
        "import sys; sys.exit(0)",
        "import sys; sys.exit(100)",
        "assert f(2) ==",
        "print('passed')\nassert f(2) == 4",
    ]
    assert verdicts(*(Program("p", right, text) for text in tests)) == [False] * len(tests)


@needs_bwrap
def test_order_is_kept_and_one_that_hangs_costs_only_itself():
    hang = Program("hang", "def f(n):\n    import time\n    time.sleep(600)", UNKNOWN)
    right = [Program(str(n), "def f(n):\n    return 41", UNKNOWN) for n in range(4)]
    calls: list[float] = []
    outcomes = judge_code([hang, *right], seconds=2.0, alive=lambda: calls.append(time.monotonic()))
    assert [(outcome.id, outcome.passed) for outcome in outcomes] == [
        ("hang", False),
        *((str(n), True) for n in range(4)),
    ]
    assert outcomes[0].problem == "not done after 2 seconds" and len(calls) == 5
    assert judge_code([], seconds=2.0) == []


@needs_bwrap
def test_a_program_reaches_nothing_while_it_is_judged(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "secret")
    (tmp_path / "secret").write_text("secret")
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.2)
        ways = {
            "network": f"import socket; socket.create_connection(('127.0.0.1', {server.getsockname()[1]}), 2)",
            "file": f"open({str(tmp_path / 'secret')!r}).read()",
            "environment": "import os; os.environ['HF_TOKEN']",
            "write": f"open({str(tmp_path / 'planted')!r}, 'w')",
        }
        programs = [Program(name, f"def f(n):\n    {code}\n    return 41", UNKNOWN) for name, code in ways.items()]
        outcomes = judge_code(programs, seconds=SECONDS)
        with pytest.raises(TimeoutError):
            server.accept()
    assert [outcome.problem.split(":")[0] for outcome in outcomes] == [
        "PermissionError", "FileNotFoundError", "KeyError", "FileNotFoundError"
    ]  # fmt: skip
    assert not (tmp_path / "planted").exists()


def test_without_a_sandbox_nothing_runs(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    ran = tmp_path / "ran"
    with pytest.raises(ConfigError, match="sandbox only") as refused:
        judge_code([Program("p", f"open({str(ran)!r}, 'w')", "")], seconds=SECONDS)
    assert "apt-get install bubblewrap" in str(refused.value.fix) and refused.value.exit_code == 2
    assert not ran.exists()

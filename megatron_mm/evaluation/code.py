"""Model-written code against tests: HumanEval (https://arxiv.org/abs/2107.03374), MBPP (https://arxiv.org/abs/2108.07732).

Each program runs in one sandbox, its tests in another (code_inside.py): the verdict is the exit status of a process
that never runs a line of the model's. The published scorers run both in one interpreter, where the code can change what
its tests see; docs/sandbox.md tells where verdicts can differ.
"""

from __future__ import annotations

import ast
import builtins
import contextlib
import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from subprocess import Popen

from megavlm.platform import sandbox

from .code_inside import FAILED, PASSED

FENCE = re.compile(r"^[ \t]*```[^\n]*\n(.*?)(?:^[ \t]*```|\Z)", re.DOTALL | re.MULTILINE)
AT_ONCE = 8  # our guess: each takes two processes, and more than this gains nothing beside a model on the same node


@dataclass(frozen=True)
class Program:
    """One program and what decides about it.

    text: the whole program, as `program_text` makes it or as a task's filter does (prompt and completion).
    tests: run after it; they pass by raising nothing. HumanEval: `test` and `check(ENTRY_POINT)`; MBPP: its asserts.
    given: what the data set gives the tests to use (HumanEval's prompt with its helpers, MBPP's setup code). It runs
        beside the tests; without it helpers are taken from the program.
    entry_point: the function that is tested; needed where `given` defines that name too.
    """

    id: str
    text: str
    tests: str
    given: str = ""
    entry_point: str = ""


@dataclass(frozen=True)
class Outcome:
    """passed: all tests ran and none raised. problem: otherwise why, in one line, part of it in the program's words.

    seconds: wall clock from when both sandboxes had started.
    """

    passed: bool
    problem: str
    id: str
    seconds: float


def judge_code(
    programs: Sequence[Program], *, seconds: float = 10.0, alive: Callable[[], object] = lambda: None
) -> list[Outcome]:
    """Outcomes in the order of `programs`; a program that hangs costs its own time only.

    seconds: wall clock of one program with its tests, from when both have started. alive: called after every program.
    Raises ConfigError where there is no sandbox (`sandbox.require`: ask before generating), MegaVLMError when a sandbox
    does not start half-way: that is no verdict on a program.
    """
    sandbox.require()
    limits = sandbox.Limits(seconds=seconds)
    outcomes = []
    with ThreadPoolExecutor(min(AT_ONCE, len(os.sched_getaffinity(0)))) as pool:
        try:
            for outcome in pool.map(lambda program: _judge(program, limits), programs):
                outcomes.append(outcome)
                alive()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
    return outcomes


def program_text(prompt: str, answer: str, entry_point: str) -> str:
    """The program that a model's answer means: its first fenced block, or all of it.

    An answer that defines the entry point stands behind the prompt, whose imports and helpers it may use; any other
    goes on where the prompt ends, as a base model's does.
    """
    blocks = FENCE.findall(answer)
    code = next((block for block in blocks if _defines(block, entry_point)), blocks[0] if blocks else answer)
    return f"{prompt}\n\n{code}" if _defines(code, entry_point) else prompt + code


def _defines(code: str, name: str) -> bool:
    """Whether `name` is defined at the outermost level; a text that does not parse to its end is asked line by line."""
    try:
        kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
        return any(isinstance(node, kinds) and node.name == name for node in ast.parse(code).body)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return re.search(rf"^(?:async )?def {re.escape(name)}\b", code, re.MULTILINE) is not None


def _judge(program: Program, limits: sandbox.Limits) -> Outcome:
    tests = {
        "given": program.given if _parses(program.given) else "",
        "entry_point": program.entry_point or _own_name_for_a_builtin(program.tests),
        "tests": program.tests,
    }
    with _two(program.text, json.dumps(tests), limits) as judge:
        ended = sandbox.listen(judge, limits)
    return Outcome(ended.code == PASSED, _problem(ended, limits), program.id, ended.seconds)


def _problem(ended: sandbox.Ended, limits: sandbox.Limits) -> str:
    if ended.code is None:
        return f"not done after {limits.seconds:g} seconds"
    if ended.code in (PASSED, FAILED):
        return " ".join(ended.stderr.split())[:300]
    return f"the tests broke off with exit status {ended.code}"  # memory or time, by what the program answered


def _parses(text: str) -> bool:
    """A prompt that ends at its colon runs only with an answer behind it; then helpers come from the program."""
    try:
        ast.parse(text)
    except (SyntaxError, ValueError):
        return False
    return True


def _own_name_for_a_builtin(tests: str) -> str:
    """The built-in function that a program defines anew: MBPP has `assert sum(10, 15) == 6`, for a sum of divisors.

    "" as soon as the tests call anything else: then built-in names mean what they always do, whatever programs define.
    """
    try:
        nodes = list(ast.walk(ast.parse(tests)))
    except (SyntaxError, ValueError):
        return ""
    called = [node.func.id for node in nodes if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)]
    return called[0] if called and all(hasattr(builtins, name) for name in called) else ""


@contextlib.contextmanager
def _two(text: str, tests: str, limits: sandbox.Limits) -> Iterator[Popen[bytes]]:
    """Both sandboxes, a pipe each way between them; yields the judge's process."""
    inside = Path(__file__).with_name("code_inside.py").read_text(encoding="utf-8")
    with contextlib.ExitStack() as stack:
        with contextlib.ExitStack() as here:
            asked, asks, answered, answers = (here.enter_context(_closing(end)) for end in (*os.pipe(), *os.pipe()))
            worker = _start(inside, "work", (asked, answers), text, limits)
            stack.enter_context(worker)
            judge = stack.enter_context(_start(inside, "judge", (answered, asks), tests, limits))
        yield judge


def _start(
    inside: str, role: str, ends: tuple[int, int], stdin: str, limits: sandbox.Limits
) -> contextlib.AbstractContextManager[Popen[bytes]]:
    words = (role, *(str(end) for end in ends))
    given = stdin.encode(errors="surrogatepass")
    return sandbox.started(inside, *words, limits=limits, stdin=given, fds=ends, talks=role == "judge")


@contextlib.contextmanager
def _closing(number: int) -> Iterator[int]:
    try:
        yield number
    finally:
        os.close(number)

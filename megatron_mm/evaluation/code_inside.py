"""The two programs that judge code, inside sandboxes. code.py hands over this file's text: it imports nothing of ours.

`worker` runs the model-written program, and knows neither the tests nor the verdict. `judge` runs the tests, each name
that they do not define themselves being a stand-in for the worker's. Between the two go lines of JSON, which hold plain
values only: so what a program does to its own interpreter (another `==`, patched modules, a trace function, an early
exit) stays there.
"""

from __future__ import annotations

import builtins
import functools
import json
import operator
import sys
import traceback
import types
from collections.abc import Callable, Iterator
from typing import IO, Any

PASSED, FAILED = 100, 101  # the judge's exit status; anything else, and it did not judge
LONGEST = 16 << 20  # bytes of one answer: the judge must not run out of memory by the program's doing
BIG = 1 << 64  # larger integers go in hexadecimal: Python refuses to read very long decimals

PLAIN: dict[type, Callable[[Any], Any]] = {str: str.__str__, float: float.__float__}
SEQUENCES = {"list": list, "tuple": tuple, "set": set, "frozenset": frozenset}


def encode(value: Any, keep: Callable[[Any], int]) -> Any:
    """JSON for a value: plain ones by content, as their base type; others stay at home under the number of `keep`."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        number = int(value)
        return number if -BIG < number < BIG else ["int", hex(number)]
    for kind, plain in PLAIN.items():
        if isinstance(value, kind):
            return plain(value)
    for name, kind in SEQUENCES.items():
        if isinstance(value, kind):
            return [name, [encode(item, keep) for item in value]]
    if isinstance(value, dict):
        return ["dict", [[encode(key, keep), encode(item, keep)] for key, item in value.items()]]
    if isinstance(value, complex):
        return ["complex", [value.real, value.imag]]
    if isinstance(value, bytes | bytearray):
        return ["bytes", value.hex()]
    if isinstance(value, type) and (name := str(value.__name__)) and getattr(builtins, name, None) is value:
        return ["type", name]
    return ["kept", keep(value)]


def decode(sent: Any, kept: Callable[[int], Any]) -> Any:
    """The value of what `encode` made. Raises ValueError on anything else."""
    if not isinstance(sent, list):
        return sent
    match sent:
        case ["int", str(text)]:
            return int(text, 16)
        case [("list" | "tuple" | "set" | "frozenset") as name, list(items)]:
            return SEQUENCES[name](decode(item, kept) for item in items)
        case ["dict", list(pairs)]:
            return {decode(key, kept): decode(item, kept) for key, item in pairs}
        case ["complex", [float(real), float(imaginary)]]:
            return complex(real, imaginary)
        case ["bytes", str(text)]:
            return bytes.fromhex(text)
        case ["type", str(name)] if isinstance(found := getattr(builtins, name, None), type):
            return found
        case ["kept", int(number)]:
            return kept(number)
    raise ValueError("an answer that is no answer")


# ---- the worker: runs the program, answers for it

DEEDS: dict[str, Callable[..., Any]] = {
    "call": lambda target, args, named: target(*args, **named),
    "list": lambda target, args, named: list(target),
    "length": lambda target, args, named: len(target),
    "item": lambda target, args, named: operator.getitem(target, *args),
    "attribute": lambda target, args, named: getattr(target, *args),
    "assign": lambda target, args, named: setattr(target, *args),
}


class Worker:
    """The program's namespace, and the objects it answered with that have no plain value."""

    def __init__(self) -> None:
        # A module of its own: dataclasses look theirs up. Not __main__: what stands under that test is not run.
        self.module = types.ModuleType("program")
        self.kept: list[Any] = []
        sys.modules["program"] = self.module

    def load(self, text: str) -> None:
        exec(compile(text, "<program>", "exec", dont_inherit=True), self.module.__dict__)

    def keep(self, value: Any) -> int:
        self.kept.append(value)
        return len(self.kept) - 1

    def do(self, deed: str, target: Any, args: Any, named: Any) -> Any:
        if deed == "name":
            if target not in self.module.__dict__:
                raise NameError(f"name {target!r} is not defined")
            return self.module.__dict__[target]
        args, named = (decode(part, self.kept.__getitem__) for part in (args, named))
        return DEEDS[deed](self.kept[target], args, named)


def work(asked: IO[str], answers: IO[str]) -> None:
    """Run the program on stdin, then answer until nobody asks any more."""
    worker, text = Worker(), sys.stdin.read()
    _answer(answers, worker, lambda: worker.load(text))
    for line in asked:
        _answer(answers, worker, functools.partial(worker.do, *json.loads(line)))


def _answer(answers: IO[str], worker: Worker, deed: Callable[[], Any]) -> None:
    try:
        line = json.dumps({"value": encode(deed(), worker.keep)})
    except BaseException as error:  # exit() too: the program is not asked whether it may end
        line = json.dumps({"error": [type(error).__name__, _told(error)]})
    answers.write(line + "\n")
    answers.flush()


def _told(error: BaseException) -> str:
    try:
        return str(error)[:500]
    except Exception:
        return "(an error that cannot be shown)"


# ---- the judge: runs the tests, asks the worker


class Asker:
    """Asks the worker. Raises the error that the program raised (a built-in one by name), EOFError when it is gone."""

    def __init__(self, asks: IO[str], answers: IO[str]) -> None:
        self.asks, self.answers = asks, answers

    def ask(self, deed: str, target: object, *args: Any, **named: Any) -> Any:
        words = [deed, target, encode(args, _number), encode(named, _number)]
        self.asks.write(json.dumps(words) + "\n")
        self.asks.flush()
        return self.answer()

    def answer(self) -> Any:
        line = self.answers.readline(LONGEST)
        if not line.endswith("\n"):
            raise EOFError("the program ended before the tests did" if len(line) < LONGEST else "too long an answer")
        match json.loads(line):
            case {"value": sent}:
                return decode(sent, lambda number: StandIn(self, number))
            case {"error": [str(name), str(message)]}:
                raise _error(name)(message)
        raise ValueError("an answer that is no answer")


def _error(name: str) -> type[Exception]:
    found = getattr(builtins, name, None)
    if isinstance(found, type) and issubclass(found, Exception) and not issubclass(found, UnicodeError):
        return found
    return type(name if name.isidentifier() else "Error", (Exception,), {})


class StandIn:
    """A function, class or object of the program. It equals nothing but itself: the program has no say in that."""

    _asker: Asker
    _number: int

    def __init__(self, asker: Asker, number: int) -> None:
        self.__dict__.update(_asker=asker, _number=number)

    def __call__(self, *args: Any, **named: Any) -> Any:
        return self._asker.ask("call", self._number, *args, **named)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._asker.ask("list", self._number))

    def __len__(self) -> int:
        return int(self._asker.ask("length", self._number))

    def __getitem__(self, key: Any) -> Any:
        return self._asker.ask("item", self._number, key)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return self._asker.ask("attribute", self._number, name)

    def __setattr__(self, name: str, value: Any) -> None:
        self._asker.ask("assign", self._number, name, value)


def _number(value: Any) -> int:
    if isinstance(value, StandIn):
        return value._number
    raise TypeError(f"the tests hand over a {type(value).__name__}, which has no plain value")


class Names(dict[str, Any]):
    """The tests' names: their own, the built-in ones, and for all others those of the program."""

    def __init__(self, asker: Asker) -> None:
        super().__init__(__name__="tests")
        self.asker = asker

    def __missing__(self, name: str) -> Any:
        if hasattr(builtins, name):
            raise KeyError(name)
        try:
            return self.asker.ask("name", name)
        except NameError:
            raise KeyError(name) from None


def judge(asks: IO[str], answers: IO[str]) -> int:
    """Run the tests on stdin ({"given", "entry_point", "tests"}); PASSED or FAILED, with the reason on stderr."""
    item, told = json.load(sys.stdin), sys.stderr
    sys.stdout = sys.stderr = None  # type: ignore[assignment]  # tests may print
    try:
        asker = Asker(asks, answers)
        asker.answer()  # of the program's loading
        names = Names(asker)
        exec(compile(item["given"], "<given>", "exec", dont_inherit=True), names)
        if item["entry_point"]:
            names[item["entry_point"]] = asker.ask("name", item["entry_point"])
        exec(compile(item["tests"], "<tests>", "exec", dont_inherit=True), names)
    except BaseException as error:  # exit() in tests is no pass
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == "<tests>"]
        where = f" (line {lines[-1]} of the tests)" if lines else ""
        told.write(f"{type(error).__name__}: {_told(error)}".removesuffix(": ") + where)
        return FAILED
    return PASSED


if __name__ == "__main__":
    role, read_from, write_to = sys.argv[1:]
    with open(int(read_from), encoding="utf-8") as reads, open(int(write_to), "w", encoding="utf-8") as writes:
        if role == "judge":
            sys.exit(judge(writes, reads))
        work(reads, writes)

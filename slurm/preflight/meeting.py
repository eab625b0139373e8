"""How the nodes of a check find each other: one hosts, all others come, and each does what it is asked to.

The host writes where it listens, and a secret, into the folder that all nodes see; only who can read it can come. Then
JSON lines go over one TCP connection per node: {"do": "exchange", ...} and the answer {"rate": ...}, or {"error": ...}.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hmac
import json
import os
import secrets
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from megavlm.platform.runs.lines import write_whole

Message = dict[str, Any]
Task = Callable[[Message], Message]
LONGEST_LINE = 1 << 20
PATIENCE = 20.0  # seconds without a newcomer after which those who are missing are not waited for
PAUSE = 0.05


class Late(Exception):
    """The others had begun."""


class Line:
    """JSON objects over a connection, one per line."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._file = connection.makefile("rb")

    def send(self, message: Message) -> None:
        """Raises OSError when the other side is gone."""
        self.connection.sendall(json.dumps(message).encode() + b"\n")

    def receive(self, seconds: float) -> Message:
        """The next object; raises OSError when none comes within `seconds`, or something that is none."""
        self.connection.settimeout(max(seconds, 0.01))
        line = self._file.readline(LONGEST_LINE)
        try:
            message = json.loads(line)
        except ValueError:
            message = None
        if not isinstance(message, dict):
            raise ConnectionError("the connection was closed")
        return message

    def close(self) -> None:
        """The other side sees an end."""
        self._file.close()
        self.connection.close()


@dataclasses.dataclass
class Guest:
    """A node at the meeting: where its own listener for partners is, and the connection to it."""

    name: str
    address: str
    port: int
    line: Line
    gone: bool = False

    def ask(self, request: Message, seconds: float) -> Message:
        """Its answer; {"error": ...} when none comes in time, and then it is gone: a later answer would mislead."""
        try:
            self.line.send(request)
            return self.line.receive(seconds)
        except OSError as error:
            self.gone = True
            return {"error": str(error) or "no answer"}


class Host:
    """Listens, and lets in who knows the secret. `place` is the file that tells the others."""

    def __init__(self, place: Path, address: str) -> None:
        self._place, self._secret = place, secrets.token_hex(16)
        self._listener = socket.create_server(("", 0), backlog=1024)
        port = self._listener.getsockname()[1]
        write_whole(place, json.dumps({"address": address, "port": port, "secret": self._secret}))
        place.chmod(0o600)

    def gather(self, count: int, patience: float = PATIENCE) -> dict[str, Guest]:
        """Name -> guest, once all `count` are here or nobody new has come for `patience` seconds."""
        guests: dict[str, Guest] = {}
        while len(guests) < count:
            self._listener.settimeout(patience)
            try:
                connection, (address, _) = self._listener.accept()
            except TimeoutError:
                break
            if (guest := self._admitted(connection, address)) is not None:
                guests[guest.name] = guest
        return guests

    def _admitted(self, connection: socket.socket, address: str) -> Guest | None:
        line = Line(connection)
        try:
            told = line.receive(5.0)
            if hmac.compare_digest(str(told.get("secret")), self._secret):
                return Guest(str(told["name"]), str(told.get("address") or address), int(told["port"]), line)
        except (OSError, KeyError, ValueError):
            pass
        line.close()
        return None

    def close(self) -> None:
        """Who comes now is late."""
        write_whole(self._place, json.dumps({"closed": True}))
        self._listener.close()


@contextlib.contextmanager
def arrive(place: Path, name: str, address: str, port: int, seconds: float) -> Iterator[Line]:
    """The connection to the host, as soon as its place is told.

    Raises Late when the meeting is closed, and OSError when there is no way to it in time.
    """
    connection, secret = _connect(place, time.monotonic() + seconds)
    line = Line(connection)
    try:
        line.send({"name": name, "address": address, "port": port, "secret": secret})
        yield line
    finally:
        line.close()


def attend(line: Line, tasks: Mapping[str, Task], seconds: float) -> Message:
    """Do what the host asks until it says {"do": "end"}, which is returned; raises OSError when it falls silent."""
    while (request := line.receive(seconds)).get("do") != "end":
        try:
            answer = tasks[request["do"]](request)
        except Exception as error:  # told to the host, which goes on without this figure
            answer = {"error": f"{type(error).__name__}: {error}"}
        line.send(answer)
    return request


def _connect(place: Path, end: float) -> tuple[socket.socket, str]:
    failure: OSError = FileNotFoundError(f"nobody opened the meeting in {place.parent}")
    while time.monotonic() < end:
        try:
            told = _told(place)
            if told.get("closed"):
                raise Late("the meeting was over")
            return socket.create_connection((told["address"], told["port"]), timeout=5.0), told["secret"]
        except FileNotFoundError:
            pass
        except OSError as error:
            failure = error
        time.sleep(PAUSE)
    raise failure


def _told(place: Path) -> Message:
    """Listing the folder first has a network file system look again at what it believes to be absent."""
    os.listdir(place.parent)
    told: Message = json.loads(place.read_text())
    return told

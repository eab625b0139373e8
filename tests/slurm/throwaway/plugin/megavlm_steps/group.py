"""The nodes of one attempt, in step with each other; who waits for a dead or a stopped one waits for ever."""

from __future__ import annotations

import json
import socket
import time
from typing import Any

from megavlm.platform.errors import MegaVLMError
from megavlm.platform.nodes import Place

CONNECT_SECONDS = 60.0


class Group:
    """Messages are JSON lines, and no socket has a time limit or keep-alives: as blind as a collective is."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._lines = self._listen() if place.leads else [self._connect()]

    def gather(self, mine: Any) -> list[Any]:
        """Every node calls it; node 0 gets what each gave, its own first, the others nothing."""
        if self._place.leads:
            return [mine, *(_receive(lines) for lines in self._lines)]
        _send(self._lines[0], mine)
        return []

    def broadcast(self, mine: Any) -> Any:
        """Every node calls it and gets what node 0 gave."""
        if not self._place.leads:
            return _receive(self._lines[0])
        for lines in self._lines:
            _send(lines, mine)
        return mine

    def _listen(self) -> list[Any]:
        if self._place.alone:
            return []
        with socket.create_server(("", self._place.port), reuse_port=True) as server:
            server.settimeout(CONNECT_SECONDS)
            try:
                return [_lines(server.accept()[0]) for _ in range(self._place.nodes - 1)]
            except TimeoutError:
                what = f"of {self._place.nodes} nodes not all came within {CONNECT_SECONDS:.0f} s"
                raise MegaVLMError(what, where=f"port {self._place.port}") from None

    def _connect(self) -> Any:
        end = time.monotonic() + CONNECT_SECONDS
        while True:
            try:
                return _lines(socket.create_connection((self._place.host, self._place.port), timeout=5))
            except OSError as error:
                if time.monotonic() > end:
                    where = f"{self._place.host}:{self._place.port}"
                    raise MegaVLMError(f"node 0 does not answer: {error}", where=where) from None
                time.sleep(0.1)


def _lines(connection: socket.socket) -> Any:
    connection.settimeout(None)
    return connection.makefile("rw")


def _send(lines: Any, message: Any) -> None:
    try:
        lines.write(json.dumps(message) + "\n")
        lines.flush()
    except OSError as error:
        raise MegaVLMError(f"a node is gone: {error}", where="the group") from None


def _receive(lines: Any) -> Any:
    try:
        line = lines.readline()
    except OSError as error:
        raise MegaVLMError(f"a node is gone: {error}", where="the group") from None
    if not line:
        raise MegaVLMError("a node is gone: it closed its connection", where="the group")
    return json.loads(line)

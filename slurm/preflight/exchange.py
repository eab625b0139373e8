"""How fast two nodes exchange bytes over one TCP connection, both directions at once; no torch.

One connection of Python fills some 10 Gbit/s. On faster fabrics this finds the cable that fell back to 1 Gbit/s, the
duplex that does not match and the port that loses packets; what NCCL gets is measured in bandwidth.py.
"""

from __future__ import annotations

import contextlib
import fcntl
import hmac
import os
import select
import socket
import struct
import time

from .meeting import Message

SECONDS = 0.3
BUFFER = 1 << 18  # bytes; small, so that what the kernel holds back is little beside what is counted
JOIN_SECONDS = 3.0
SIOCGIFADDR = 0x8915  # linux/sockios.h


class Exchange:
    """This node's listener for its partners, and the task that the host asks for."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("", 0))
        self.port: int = self._listener.getsockname()[1]

    def run(self, request: Message) -> Message:
        """{"key", "seconds"} to wait for the partner, or {"key", "seconds", "address", "port"} to call it.

        Returns {"rate": received bytes per second}. Raises OSError when the partner does not come.
        """
        caller = "address" in request
        with contextlib.closing(self._call(request) if caller else self._wait(request)) as connection:
            return {"rate": duplex(connection, float(request["seconds"]))}

    def _call(self, request: Message) -> socket.socket:
        connection = socket.create_connection((request["address"], request["port"]), timeout=JOIN_SECONDS)
        _sized(connection)
        connection.sendall(bytes.fromhex(request["key"]))
        if connection.recv(1) != b"+":
            raise ConnectionError("the partner refused")
        return connection

    def _wait(self, request: Message) -> socket.socket:
        """The partner of this round; one of an earlier round that comes late has another key."""
        key, end = bytes.fromhex(request["key"]), time.monotonic() + JOIN_SECONDS
        while True:
            self._listener.settimeout(max(end - time.monotonic(), 0.01))
            connection, _ = self._listener.accept()
            _sized(connection)
            connection.settimeout(JOIN_SECONDS)
            with contextlib.suppress(OSError):
                if hmac.compare_digest(connection.recv(len(key), socket.MSG_WAITALL), key):
                    connection.sendall(b"+")
                    return connection
            connection.close()


def duplex(connection: socket.socket, seconds: float) -> float:
    """Send and receive for `seconds`; received bytes per second, from the first that came to the last."""
    connection.setblocking(False)
    block, into = bytes(BUFFER), bytearray(BUFFER)
    received, first, last, end = 0, None, 0.0, time.perf_counter() + seconds
    with contextlib.suppress(ConnectionError):  # the partner's time may be over a moment earlier
        while (left := end - time.perf_counter()) > 0:
            readable, writable, _ = select.select([connection], [connection], [], left)
            if readable:
                if not (count := connection.recv_into(into)):
                    break
                last = time.perf_counter()
                first = last if first is None else first
                received += count
            if writable:
                with contextlib.suppress(BlockingIOError):
                    connection.send(block)
    # A process that was not given the CPU for most of the time found only what the kernel had kept: no rate of its own.
    return received / max(last - (first or last), seconds / 2)


def own_address(towards: str | None) -> str:
    """This node's address on the interface that GLOO_SOCKET_IFNAME or NCCL_SOCKET_IFNAME names, if it has that one;
    else the one by which it reaches `towards`; else that of its host name."""
    for name in filter(None, (os.environ.get(f"{of}_SOCKET_IFNAME") for of in ("GLOO", "NCCL"))):
        with contextlib.suppress(OSError):
            return _interface_address(name)
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((towards or "", 9))  # sends nothing: it only picks the route
        if towards:
            return str(probe.getsockname()[0])
    return socket.gethostname()


def _interface_address(name: str) -> str:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        told = fcntl.ioctl(probe.fileno(), SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
    return socket.inet_ntoa(told[20:24])


def _sized(connection: socket.socket) -> None:
    for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
        connection.setsockopt(socket.SOL_SOCKET, option, BUFFER)

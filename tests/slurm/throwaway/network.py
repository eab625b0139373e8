"""A bridge on this machine and a cable to every node, as root may make them."""

from __future__ import annotations

import json
import random
import subprocess
from collections.abc import Sequence
from pathlib import Path

GATEWAY = 254
PREFIX = "throw"


class Network:
    """10.OCTET.77.0/24 on a bridge of its own; the number of a node is the last part of its address."""

    def __init__(self, octet: int) -> None:
        self.octet, self.bridge = octet, f"{PREFIX}{octet}"
        self.gateway = f"10.{octet}.77.{GATEWAY}"

    @classmethod
    def make(cls, folder: Path) -> Network:
        """One that nobody has. Making the bridge is what takes the number, so two clusters cannot share one."""
        free = sorted(set(range(20, 220)) - _taken())
        for octet in random.SystemRandom().sample(free, len(free)):
            network = cls(octet)
            if subprocess.run(["ip", "link", "add", network.bridge, "type", "bridge"], capture_output=True).returncode:
                continue
            (folder / "bridge").write_text(network.bridge)
            _ip(f"addr add {network.gateway}/24 dev {network.bridge}", f"link set {network.bridge} up")
            return network
        raise RuntimeError("every network from 10.20.77.0/24 to 10.219.77.0/24 is in use")

    @staticmethod
    def remove(folder: Path) -> None:
        """Take away the bridge that `make` wrote down, if it is there, and its cables before it.

        The kernel clears a dead node's end of a cable away later, when another cluster may have the same names.
        """
        noted = folder / "bridge"
        if not noted.exists():
            return
        words = ["ip", "-json", "link", "show", "master", noted.read_text()]
        told = subprocess.run(words, capture_output=True, text=True).stdout
        for link in (*(link["ifname"] for link in json.loads(told or "[]")), noted.read_text()):
            subprocess.run(["ip", "link", "del", link], capture_output=True)
        noted.unlink()

    def address(self, node: str) -> str:
        """n3 -> 10.OCTET.77.3."""
        return f"10.{self.octet}.77.{node.removeprefix('n')}"

    def inside(self, node: str) -> str:
        """What a node itself does once its cable is plugged, as lines for `ip -batch`."""
        lines = ("link set lo up", "link set eth0 up", f"addr add {self.address(node)}/24 dev eth0")
        return "\n".join((*lines, f"route add default via {self.gateway}")) + "\n"

    def plug(self, node: str, process: int | None) -> None:
        """A cable from the bridge to the namespace of `process`."""
        cable = self._cable(node)
        _ip(f"link add {cable} type veth peer name eth0 netns {process}", f"link set {cable} master {self.bridge} up")

    def unplug(self, node: str) -> None:
        """Cut the cable: nothing gets out of the node any more, no goodbye either."""
        subprocess.run(["ip", "link", "del", self._cable(node)], capture_output=True)

    def shape(self, node: str, enter: Sequence[str], mbit: float | None) -> None:
        """Limit both ends of the cable to `mbit` Mbit/s each; `enter` are the words that run others inside the node."""
        for before, device in (([], self._cable(node)), (list(enter), "eth0")):
            qdisc = [*before, "tc", "qdisc"]
            if mbit is None:
                subprocess.run([*qdisc, "del", "dev", device, "root"], capture_output=True)
                continue
            burst = max(32_000, int(mbit * 1e6 / 8 / 100))  # bytes in 10 ms: coarser than the kernel's clock
            rate = ["tbf", "rate", f"{mbit}mbit", "burst", str(burst), "latency", "50ms"]
            subprocess.run([*qdisc, "replace", "dev", device, "root", *rate], check=True, capture_output=True)

    def _cable(self, node: str) -> str:
        return f"{self.bridge}{node}"


def _ip(*lines: str) -> None:
    subprocess.run(["ip", "-batch", "-"], input="\n".join(lines) + "\n", text=True, check=True, capture_output=True)


def _taken() -> set[int]:
    """Second octets of the 10.x networks that this machine is in already."""
    listed = subprocess.run(["ip", "-json", "-4", "addr"], capture_output=True, text=True, check=True).stdout
    addresses = [info["local"] for link in json.loads(listed) for info in link.get("addr_info", [])]
    return {int(address.split(".")[1]) for address in addresses if address.startswith("10.")}

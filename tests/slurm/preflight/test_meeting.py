"""Nodes that find each other through a file and measure the network between them: threads of one machine."""

from __future__ import annotations

import json
import socket
import stat
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from megavlm.slurm.preflight.exchange import Exchange, duplex, own_address
from megavlm.slurm.preflight.host import hold
from megavlm.slurm.preflight.meeting import Host, Late, Line, arrive, attend
from megavlm.slurm.preflight.node import meeting_place
from megavlm.slurm.preflight.survey import Survey

HERE = "127.0.0.1"
pytestmark = pytest.mark.timeout(60)


def visit(place, name, clock=0.0, figures=None, again=None):
    """One node's part: what the host told it at the end."""
    exchange, own = Exchange(), {"disk": 1e9} | (figures or {})
    tasks = {
        "clock": lambda _: {"time": time.time() + clock},
        "exchange": exchange.run,
        "figures": lambda _: {"figures": own},
        "again": lambda request: {"value": again() if again else own[request["figure"]]},
    }
    with arrive(place, name, HERE, exchange.port, seconds=20) as line:
        return attend(line, tasks, seconds=30)


def meeting(tmp_path, guests, count=None):
    """What each of these nodes is told when they meet; `guests`: name -> keywords of `visit`."""
    place = tmp_path / ".meeting"
    threading.Thread(target=hold, args=(place, HERE, count or len(guests), 0.5, False), daemon=True).start()
    with ThreadPoolExecutor(len(guests)) as pool:
        futures = {name: pool.submit(visit, place, name, **how) for name, how in guests.items()}
        return {name: future.result(timeout=40) for name, future in futures.items()}


def test_everyone_is_told_its_network_and_its_clock(tmp_path):
    told = meeting(tmp_path, {"n1": {}, "n2": {"clock": 7.0}, "n3": {"clock": -2.0}})
    assert all(one["figures"]["network"] > 1e6 for one in told.values())
    assert {name: round(one["clock"]["seconds"]) for name, one in told.items()} == {"n1": 0, "n2": 7, "n3": -2}
    assert all(0 <= one["clock"]["error"] < 0.5 for one in told.values())


def test_who_looks_slow_measures_again_and_its_best_counts(tmp_path):
    tries = iter([0.2e9, 0.9e9])
    lucky = {"figures": {"disk": 0.1e9}, "again": lambda: next(tries)}
    sick = {"figures": {"disk": 0.1e9}, "again": lambda: 0.1e9}
    told = meeting(tmp_path, {"n1": {}, "n2": {}, "n3": {}, "lucky": lucky, "sick": sick})
    assert told["lucky"]["figures"]["disk"] == 0.9e9 and told["sick"]["figures"]["disk"] == 0.1e9
    assert next(tries, None) is None


def test_the_meeting_goes_on_without_who_does_not_come(tmp_path):
    place = tmp_path / ".meeting"
    host = Host(place, HERE)
    with ThreadPoolExecutor(1) as pool:
        visited = pool.submit(visit, place, "n1")
        guests = host.gather(3, patience=0.5)
        host.close()
        Survey(guests, 0.5).tell({})
        assert set(guests) == {"n1"} and visited.result(timeout=60)["do"] == "end"


def test_who_comes_after_the_beginning_is_late(tmp_path):
    place = tmp_path / ".meeting"
    Host(place, HERE).close()
    with pytest.raises(Late), arrive(place, "n9", HERE, 1, seconds=5):
        pass


def test_nobody_waits_for_ever_for_a_host(tmp_path):
    with pytest.raises(OSError, match="nobody opened"), arrive(tmp_path / ".meeting", "n1", HERE, 1, seconds=0.2):
        pass


def test_only_who_can_read_the_place_gets_in(tmp_path):
    place = tmp_path / ".meeting"
    host = Host(place, HERE)
    assert stat.S_IMODE(place.stat().st_mode) == 0o600
    told = json.loads(place.read_text())
    for greeting in (b'{"name": "n1", "port": 1, "secret": "guess"}\n', b"\n", b"[1]\n", b"\xff\n"):
        with socket.create_connection((HERE, told["port"])) as stranger:
            stranger.sendall(greeting)
            assert host.gather(1, patience=0.2) == {}


def test_a_guest_that_dies_costs_its_own_figures_only(tmp_path):
    place = tmp_path / ".meeting"
    host = Host(place, HERE)
    with ThreadPoolExecutor(4) as pool:
        visits = [pool.submit(visit, place, name) for name in ("n1", "n2", "n3")]
        pool.submit(_come_and_go, place)
        guests = host.gather(4, patience=5)
        survey = Survey(guests, 0.5)
        survey.by_pairs("network", survey.exchange)
        survey.tell({})
        figures = [visited.result(timeout=60)["figures"] for visited in visits]
    assert all(figure["network"] > 1e6 for figure in figures) and "gone" not in survey.figures["network"]


def _come_and_go(place):
    with arrive(place, "gone", HERE, 1, seconds=5):
        pass


def test_a_partner_with_another_key_is_turned_away_and_the_right_one_let_in():
    exchange = Exchange()
    place = {"address": HERE, "port": exchange.port, "seconds": 0.1}
    with ThreadPoolExecutor(2) as pool:
        waits = pool.submit(exchange.run, {"key": "aa" * 16, "seconds": 0.1})
        with pytest.raises(OSError):
            Exchange().run(place | {"key": "bb" * 16})
        assert Exchange().run(place | {"key": "aa" * 16})["rate"] > 0 and waits.result(timeout=60)["rate"] > 0


def test_a_partner_that_sends_nothing_has_no_rate():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert duplex(ours, 0.1) == 0.0


def test_lines_that_are_no_objects_end_the_connection():
    ours, theirs = _pair()
    with theirs:
        line = Line(ours)
        theirs.sendall(b"nonsense\n")
        with pytest.raises(ConnectionError):
            line.receive(1.0)
        line.close()


def _pair():
    with socket.create_server((HERE, 0)) as listener:
        ours = socket.create_connection(listener.getsockname())
        return ours, listener.accept()[0]


def test_each_job_step_meets_at_a_place_of_its_own(tmp_path):
    steps = [
        {"SLURM_JOB_ID": "7", "SLURM_STEP_ID": step, "SLURM_RESTART_COUNT": again} for step in "01" for again in "01"
    ]
    assert len({meeting_place(tmp_path, step) for step in steps}) == 4


def test_the_address_is_that_of_the_interface_a_profile_names(monkeypatch):
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    assert own_address("192.0.2.1") == HERE
    monkeypatch.delenv("GLOO_SOCKET_IFNAME")
    assert own_address(HERE) == HERE


def test_who_met_nobody_is_given_more_partners(tmp_path, monkeypatch):
    """A node whose own listener cannot be reached has no rate, whoever tries; the others keep theirs."""
    monkeypatch.setattr("megavlm.slurm.preflight.exchange.JOIN_SECONDS", 0.5)
    place = tmp_path / ".meeting"
    host = Host(place, HERE)
    with ThreadPoolExecutor(4) as pool:
        visits = [pool.submit(visit, place, name) for name in ("n1", "n2", "n3")]
        deaf = pool.submit(_deaf, place)
        guests = host.gather(4, patience=5)
        survey = Survey(guests, 0.5)
        rounds = []
        survey.by_pairs("network", lambda pairs: rounds.append(pairs) or survey.exchange(pairs))
        survey.tell({})
        assert all(visited.result(timeout=60)["figures"]["network"] > 1e6 for visited in visits)
        assert "network" not in deaf.result(timeout=60)["figures"]
    assert len(rounds) == 3 + 4 and all("deaf" in pair for pairs in rounds[3:] for pair in pairs)


def _deaf(place):
    with arrive(place, "deaf", HERE, 1, seconds=5) as line:
        return attend(line, {}, seconds=30)

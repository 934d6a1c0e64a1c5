"""Links between namespaces: the model of one direction without I/O, and one real link."""

from __future__ import annotations

import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.link import LINKS, MTU, NAMESPACES, Lane, Link, link, raw_tcp, round_trips, unavailable
from bench.programs import BenchError, Place, tree
from tests.support import need

ROOT = Path(__file__).parents[2]
FULL = bytes(MTU)
PACKET_TIME = 120e-6  # of a full packet at 100 Mbit/s


def arrivals(lane: Lane) -> list[float]:
    """When each packet that is under way arrives."""
    found = []
    while (when := lane.next()) is not None:
        found += [when] * len(lane.due(when))
    return found


# --- one direction -----------------------------------------------------------------------------------------------------


def test_lane_sends_a_packet_and_then_lets_it_fly() -> None:
    lane = Lane(Link(100, 40), 1)
    lane.put([FULL], 5.0)
    assert lane.next() == pytest.approx(5.0 + PACKET_TIME + 0.020)
    assert lane.due(5.020) == []
    assert lane.due(5.0202) == [FULL]
    assert lane.next() is None


def test_lane_sends_one_packet_after_another_at_the_rate() -> None:
    lane = Lane(Link(100, 40), 1)
    lane.put([FULL, bytes(MTU // 2), FULL], 0.0)
    lane.put([FULL], 1.0)  # long after it fell silent: nothing is saved up
    assert arrivals(lane) == pytest.approx([0.02 + PACKET_TIME * n for n in (1, 1.5, 2.5)] + [1.02 + PACKET_TIME])


def test_lane_drops_what_finds_the_queue_full() -> None:
    lane = Lane(Link(100, 40, queue=10), 1)
    packets = [bytes([n]) * MTU for n in range(15)]
    lane.put(packets, 0.0)
    assert lane.due(1.0) == packets[:10]
    assert (lane.taken, lane.overflow, lane.delivered) == (15, 5, 10)


def test_lane_has_room_again_for_each_packet_that_is_sent() -> None:
    lane = Lane(Link(100, 40, queue=10), 1)
    lane.put([FULL] * 10, 0.0)
    lane.put([FULL] * 5, PACKET_TIME * 2.5)
    assert lane.overflow == 3


def test_packets_in_flight_take_no_room_in_the_queue() -> None:
    lane = Lane(Link(100, 40, queue=2), 1)
    for number in range(160):
        lane.put([FULL], number * PACKET_TIME)
    assert lane.overflow == 0
    assert len(arrivals(lane)) == 160


def test_lane_loses_the_same_packets_for_the_same_seed() -> None:
    spec = Link(100, 40, loss=1, queue=100_000)
    packets = [number.to_bytes(4, "big") for number in range(50_000)]

    def survivors(seed: int) -> list[bytes]:
        lane = Lane(spec, seed)
        lane.put(packets, 0.0)
        got = lane.due(1e9)
        assert len(got) + lane.lost == len(packets)
        return got

    assert survivors(1) == survivors(1) != survivors(2)
    assert len(survivors(1)) / len(packets) == pytest.approx(0.99, abs=0.002)


def test_a_lost_packet_has_taken_its_time_on_the_link() -> None:
    lane = Lane(Link(100, 40, loss=100), 1)
    lane.put([FULL] * 1001, 0.0)
    assert (lane.lost, lane.overflow, lane.next()) == (1000, 1, None)


def test_lane_counts_what_it_gives_up_late() -> None:
    lane = Lane(Link(100, 40), 1)
    lane.put([FULL], 0.0)
    lane.put([FULL], 1.0)
    assert len(lane.due(1.0202)) == 2
    assert (lane.late, lane.delivered) == (1, 2)


BURSTS = st.lists(st.tuples(st.floats(0, 0.01), st.lists(st.integers(40, MTU), max_size=20)), max_size=30)


@given(
    bursts=BURSTS,
    rate=st.floats(1, 1000),
    rtt=st.floats(0, 200),
    loss=st.sampled_from([0, 1, 30]),
    queue=st.integers(1, 30),
)
def test_lane_keeps_order_rate_and_count(
    bursts: Iterable[tuple[float, list[int]]], rate: float, rtt: float, loss: float, queue: int
) -> None:
    lane = Lane(Link(rate, rtt, loss=loss, queue=queue), 1)
    now, number = 0.0, 0
    handed_in: dict[int, float] = {}
    for gap, sizes in bursts:
        now += gap
        packets = [(number + i).to_bytes(4, "big") + bytes(size - 4) for i, size in enumerate(sizes)]
        handed_in |= dict.fromkeys(range(number, number + len(sizes)), now)
        number += len(sizes)
        lane.put(packets, now)
    got: list[int] = []
    last = 0.0
    while (when := lane.next()) is not None:
        for packet in lane.due(when):
            name = int.from_bytes(packet[:4], "big")
            sending = len(packet) * 8e-6 / rate
            assert when >= handed_in[name] + sending + rtt / 2000 - 1e-9
            assert when <= handed_in[name] + queue * MTU * 8e-6 / rate + rtt / 2000 + 1e-9
            assert when >= last + sending - 1e-9 or not got
            got.append(name)
            last = when
    assert got == sorted(set(got))
    assert lane.taken == number == len(got) + lane.lost + lane.overflow
    assert lane.delivered == len(got)


def test_links_have_titles_of_their_own() -> None:
    assert len({spec.title for spec in LINKS}) == len(LINKS)
    assert LINKS[-1].title == "100 Mbit/s, 40 ms, 1 % loss, bbr"


# --- a real link --------------------------------------------------------------------------------------------------------


@pytest.fixture
def possible(monkeypatch: pytest.MonkeyPatch) -> None:
    need.root("to make network namespaces")
    if reason := unavailable():
        need.missing(reason)
    monkeypatch.chdir(ROOT)  # where `python -m bench.link` is found


def names(place: Place) -> tuple[str, str]:
    return place.relay[-1], place.client[-1]


def between() -> list[int]:
    """The processes that carry packets for this one."""
    pids = tree([os.getpid()])
    return [pid for pid in pids if b"bench.link" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def gone(place: Place) -> bool:
    return not any((NAMESPACES / name).exists() for name in names(place))


@pytest.mark.usefixtures("possible")
def test_link_has_its_round_trip_and_rate_and_vanishes() -> None:
    spec = Link(100, 40)
    report: dict[str, Any] = {}
    with link(spec, report=report) as place:
        trips = round_trips(place, 30)
        rate = raw_tcp(place, 2.0)
        left = subprocess.Popen([*place.client, sys.executable, "-c", "import time; time.sleep(60)"])
        asked = [*place.relay, sys.executable, "-c", CONGESTION, place.client_address]
        congestion = subprocess.run(asked, check=True, capture_output=True, text=True).stdout.strip()
        assert between()
    assert len(trips) == 30
    assert 39.5 <= statistics.median(trips) <= 42
    assert 0.85 * spec.rate <= rate <= spec.rate
    assert congestion == spec.congestion
    assert report["to relay"]["delivered"] > 10_000
    assert report["to client"]["lost"] == report["to relay"]["lost"] == 0
    assert left.wait(5) == -signal.SIGKILL
    assert gone(place)
    assert not between()


CONGESTION = """
import socket, sys
with socket.socket() as sock:
    sock.setblocking(False)
    sock.connect_ex((sys.argv[1], 1))
    print(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16).strip(b"\\0").decode())
"""


@pytest.mark.usefixtures("possible")
def test_link_loses_its_share() -> None:
    report: dict[str, Any] = {}
    with link(Link(100, 2, loss=20), report=report) as place:
        trips = round_trips(place, 1000, 0.001)
    assert len(trips) / 1000 == pytest.approx(0.8**2, abs=0.08)
    assert report["to client"]["lost"] / report["to client"]["taken"] == pytest.approx(0.2, abs=0.06)


@pytest.mark.usefixtures("possible")
def test_link_vanishes_when_its_owner_is_killed() -> None:
    owner = subprocess.Popen([sys.executable, "-c", OWNER], stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    relay, client = owner.stdout.readline().split()
    assert (NAMESPACES / relay).exists() and (NAMESPACES / client).exists()
    owner.kill()
    owner.communicate()
    deadline = time.monotonic() + 5
    while (NAMESPACES / relay).exists() or (NAMESPACES / client).exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)


OWNER = """
import time
from bench.link import LINKS, link
with link(LINKS[0]) as place:
    print(place.relay[-1], place.client[-1], flush=True)
    time.sleep(60)
"""


@pytest.mark.usefixtures("possible")
def test_link_that_breaks_meanwhile_is_an_error_and_leaves_nothing() -> None:
    context = link(LINKS[0])
    place = context.__enter__()
    for pid in between():
        os.kill(pid, signal.SIGKILL)
    with pytest.raises(BenchError, match="100 Mbit/s"):
        context.__exit__(None, None, None)
    assert gone(place)


@pytest.mark.usefixtures("possible")
def test_link_that_cannot_be_is_an_error_and_leaves_nothing() -> None:
    before = set(NAMESPACES.iterdir())
    with pytest.raises(BenchError, match="There is no link of"):
        with link(Link(100, 40, congestion="none-such")):
            pass
    mine = f"fastrelay-{os.getpid()}-"
    assert not [path for path in set(NAMESPACES.iterdir()) - before if path.name.startswith(mine)]


def test_without_root_there_is_no_link_and_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert "sudo" in unavailable()

"""Links between the two ends of a system: a rate, a round trip, loss and a queue, without help from the kernel.

Two network namespaces with a TUN device each, and a process between them that carries packets from one to the other as
a link would. It needs root and /dev/net/tun, but no netem, which small kernels lack. `python -m bench.link` shows what
the links of the benchmark really are: round trip, raw TCP, loss, and the CPU time of the process between.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import gc
import itertools
import json
import os
import random
import select
import signal
import socket
import statistics
import struct
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from bench import targets
from bench.programs import BenchError, Place, find, line, run

MTU = 1500
RELAY, CLIENT = "10.77.0.1", "10.77.0.2"
NAMESPACES = Path("/run/netns")
TUN = Path("/dev/net/tun")
GRAIN = 300e-6
"""Seconds that the process between waits for more packets after it moved some. A packet is early or late by half of it."""
LATE = 1e-3
"""A packet that arrives so many seconds after its time is counted: with many of them the link was not what it says."""


class Link(NamedTuple):
    """A link; all of it but the round trip holds for each way. `queue` is what waits or is being sent, not what is in flight."""

    rate: float  # Mbit/s of IP packets
    rtt: float  # ms, half of it for each way
    loss: float = 0.0  # percent of the packets
    congestion: str = "bbr"  # congestion control of both ends: "bbr" or "cubic"
    queue: int = 1000  # packets

    @property
    def title(self) -> str:
        loss = f", {self.loss:g} % loss" if self.loss else ""
        return f"{self.rate:g} Mbit/s, {self.rtt:g} ms{loss}, {self.congestion}"


LINKS = (
    Link(100, 40),
    Link(100, 40, congestion="cubic"),
    Link(20, 80),
    Link(500, 5),
    Link(100, 40, loss=0.1),
    Link(100, 40, loss=1),
)
WAYS = ("to client", "to relay")

_numbers = itertools.count()


def unavailable() -> str:
    """Why there can be no links here and what to do about it, in a sentence. Empty when there can."""
    if os.geteuid() != 0:
        return "Links need network namespaces, which only root may make: run it with sudo."
    ip = find("ip")
    if ip is None:
        return "Links need the program ip: install the package iproute2."
    if not TUN.exists():
        return f"Links need {TUN}: load the module tun, or hand the device to the container (--device {TUN})."
    name = _name()
    try:
        made = subprocess.run([ip, "netns", "add", name], check=False, capture_output=True, text=True)
    finally:
        _remove(name)
    if made.returncode:
        return f"Links need network namespaces, and `ip netns add` fails ({made.stderr.strip()}): run it on a machine, or in a container with --privileged."
    return ""


@contextlib.contextmanager
def link(spec: Link, *, seed: int = 1, report: dict[str, Any] | None = None) -> Iterator[Place]:
    """Two machines with this link between them, which vanish after the block with everything that still runs on them.

    `report` receives what the process between counted. Raises BenchError when the link cannot be, or broke meanwhile.
    """
    ip = find("ip") or "ip"
    relay, client = _name(), _name()
    with ExitStack() as stack:
        stack.callback(_remove, relay, client)  # a second time, for when the process between was killed
        command = (sys.executable, "-m", "bench.link", "between", relay, client, json.dumps(spec), str(seed))
        between = run(stack, *command, stdout=subprocess.PIPE)
        if (said := line(between, f"The link of {spec.title}")) != "ready":
            raise BenchError(f"There is no link of {spec.title}: {said}.")
        yield Place(
            relay=(ip, "netns", "exec", relay),
            client=(ip, "netns", "exec", client),
            relay_address=RELAY,
            client_address=CLIENT,
        )
        between.terminate()
        if not (said := line(between, f"The link of {spec.title}")).startswith("{"):
            raise BenchError(f"The link of {spec.title} broke: {said}.")
        counted = json.loads(said)
        if report is not None:
            report.update(counted)
        late, delivered = (sum(counted[way][name] for way in WAYS) for name in ("late", "delivered"))
        if late > 100 + delivered / 20:
            raise BenchError(
                f"The link of {spec.title} was late with {late} of {delivered} packets, so figures of it say nothing: "
                "its process did not get a core. Run it where root may use real-time scheduling."
            )


def _name() -> str:
    return f"fastrelay-{os.getpid()}-{next(_numbers)}"


def _remove(*names: str) -> None:
    """Remove namespaces, and kill what runs in them."""
    ip = find("ip") or "ip"
    for name in names:
        if not (NAMESPACES / name).exists():
            continue
        for _ in range(100):  # until none is left that was forked meanwhile
            listed = subprocess.run([ip, "netns", "pids", name], check=False, capture_output=True, text=True)
            if not (pids := listed.stdout.split()):
                break
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
            time.sleep(0.01)
        subprocess.run([ip, "netns", "del", name], check=False, capture_output=True)


# --- one direction -----------------------------------------------------------------------------------------------------


class Lane:
    """One direction of a link, without I/O and clock: what is put in comes out later, in order, or not at all.

    A packet waits in the queue until those before it are sent, is sent at the rate, and then flies for half a round
    trip. Only what waits or is being sent counts against the queue, as in a router: at 100 Mbit/s and 40 ms another
    166 packets are in flight. Loss happens in flight, so that a lost packet has taken its time like any other.
    """

    def __init__(self, spec: Link, seed: int | str) -> None:
        self.taken = self.overflow = self.lost = self.delivered = self.late = 0
        self._per_byte = 8e-6 / spec.rate
        self._flight = spec.rtt / 2000
        self._loss = spec.loss / 100
        self._room = spec.queue
        self._random = random.Random(seed)
        self._sent_at: deque[float] = deque()  # of those that wait or are being sent
        self._line: deque[tuple[float, bytes]] = deque()  # when each arrives; order never changes, so no heap

    def put(self, packets: Iterable[bytes], now: float) -> None:
        """Take packets that were handed in at `now`, which never goes back."""
        sent_at = self._sent_at
        while sent_at and sent_at[0] <= now:
            sent_at.popleft()
        end = sent_at[-1] if sent_at else now
        for packet in packets:
            self.taken += 1
            if len(sent_at) >= self._room:
                self.overflow += 1
                continue
            end += len(packet) * self._per_byte
            sent_at.append(end)
            if self._loss and self._random.random() < self._loss:
                self.lost += 1
            else:
                self._line.append((end + self._flight, packet))

    def due(self, now: float) -> list[bytes]:
        """Give up the packets that have arrived by `now`."""
        line = self._line
        if not line or line[0][0] > now:
            return []
        before = len(line)
        late = now - LATE
        packets = []
        while line and line[0][0] <= now:
            arrival, packet = line.popleft()
            packets.append(packet)
            if arrival < late:
                self.late += 1
        self.delivered += before - len(line)
        return packets

    def next(self) -> float | None:
        """When the next packet arrives."""
        return self._line[0][0] if self._line else None

    def counts(self) -> dict[str, int]:
        names = ("taken", "overflow", "lost", "delivered", "late")
        return {name: getattr(self, name) for name in names}


# --- the process between -----------------------------------------------------------------------------------------------

_libc = ctypes.CDLL(None, use_errno=True)
_CLONE_NEWNET = 0x40000000
_PR_SET_PDEATHSIG = 1
_TUNSETIFF = 0x400454CA
_IFF_TUN, _IFF_NO_PI = 0x0001, 0x1000


def _between(relay: str, client: str, spec: Link, seed: int) -> None:
    """Make the namespaces, carry packets until SIGTERM, remove them. The parent's death is a SIGTERM, so nothing stays behind."""
    parent = os.getppid()
    signal.signal(signal.SIGTERM, _leave)
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    lanes = [Lane(spec, f"{seed} {way}") for way in WAYS]
    start = 0.0
    try:
        if os.getppid() != parent:
            return
        here, there = _end(relay, RELAY, CLIENT, spec), _end(client, CLIENT, RELAY, spec)
        # A link never waits for a core, and here it shares them with what is measured over it. With two busy cores and
        # 5 ms, the median round trip is 5 ms this way and 17 ms without.
        with contextlib.suppress(OSError):
            os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
        gc.disable()  # nothing here is a cycle
        start = time.process_time()
        print("ready", flush=True)
        _carry(((lanes[0], here, there), (lanes[1], there, here)))
    except (OSError, subprocess.SubprocessError) as error:
        print(f"{getattr(error, 'stderr', '') or error}".strip().replace("\n", "; "), flush=True)
    finally:
        spent = time.process_time() - start
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        _remove(relay, client)
        counts = {way: lane.counts() for way, lane in zip(WAYS, lanes, strict=True)}
        with contextlib.suppress(BrokenPipeError):
            print(json.dumps(counts | {"cpu": spent}), flush=True)


def _leave(*_: object) -> NoReturn:
    raise SystemExit


def _end(namespace: str, address: str, peer: str, spec: Link) -> int:
    """Make one namespace, and in it a TUN device whose descriptor is the result."""
    ip = find("ip") or "ip"
    subprocess.run([ip, "netns", "add", namespace], check=True, capture_output=True, text=True)
    with Path("/proc/self/ns/net").open() as home, (NAMESPACES / namespace).open() as there:
        _enter(there.fileno())
        try:
            fd = os.open(TUN, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
            fcntl.ioctl(fd, _TUNSETIFF, struct.pack("16sH22x", b"tun0", _IFF_TUN | _IFF_NO_PI))
            for command in (
                "link set lo up",
                "link set tun0 addrgenmode none",  # no IPv6 of its own: silence until somebody talks
                # The only queue is ours: a burst that the device dropped would be lost without a trace in the counts.
                f"link set tun0 mtu {MTU} txqueuelen 10000 up",
                f"addr add {address} dev tun0",
                # Of the route, not of the namespace: only what the whole machine allows could be set there.
                f"route add {peer} dev tun0 congctl {spec.congestion}",
            ):
                subprocess.run([ip, *command.split()], check=True, capture_output=True, text=True)
            # A connection starts without what an earlier one has learnt.
            Path("/proc/sys/net/ipv4/tcp_no_metrics_save").write_text("1")
        finally:
            _enter(home.fileno())
    return fd


def _enter(namespace: int) -> None:
    if _libc.setns(namespace, _CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns: " + os.strerror(ctypes.get_errno()))


def _carry(ways: tuple[tuple[Lane, int, int], ...]) -> NoReturn:
    """Carry packets for ever, along each lane from one descriptor to another.

    Moving a packet costs two system calls, and waking up for each would cost several times that. So after a turn that
    moved something it naps for GRAIN and finds what has gathered, and only a turn with nothing to do waits for an event.
    What is due within half a grain is delivered early, and what came during a nap is taken to have come in the middle
    of it: then packets are as often early as late, and the link is on the whole as long as it says.
    """
    clock = time.monotonic
    fds = [source for _, source, _ in ways]
    napped = 0.0
    while True:
        moved = False
        for lane, source, target in ways:
            now = clock()
            if packets := lane.due(now + GRAIN / 2):
                moved = True
                for packet in packets:
                    os.write(target, packet)
            if packets := _read(source):
                moved = True
                lane.put(packets, now - napped / 2)
        if moved:
            napped = GRAIN
            time.sleep(GRAIN)
        else:
            napped = 0.0
            arrivals = [arrival for lane, _, _ in ways if (arrival := lane.next()) is not None]
            select.select(fds, (), (), max(0.0, min(arrivals) - GRAIN / 2 - clock()) if arrivals else None)


def _read(source: int) -> list[bytes]:
    """What waits in the device, but no more than a burst at a time: others are due meanwhile."""
    packets: list[bytes] = []
    try:
        while len(packets) < 64:
            packets.append(os.read(source, MTU))
    except BlockingIOError:
        pass
    return packets


# --- what a link is ----------------------------------------------------------------------------------------------------


def round_trips(place: Place, number: int = 50, interval: float = 0.01) -> list[float]:
    """Round trips in ms of echo requests, which kernels answer, from the relay's machine to the client's. Lost ones are missing."""
    with ExitStack() as stack:
        command = (sys.executable, "-m", "bench.link", "ping", place.client_address, str(number), str(interval))
        pinging = run(stack, *place.relay, *command, stdout=subprocess.PIPE)
        return list(map(float, json.loads(line(pinging, "The ping"))))


def raw_tcp(place: Place, seconds: float = 5.0, warm: float = 1.0) -> float:
    """Mbit/s that one TCP connection carries from the client's machine to the relay's, `warm` seconds after its start."""
    with ExitStack() as stack:
        to = [place.client_address, str(targets.mover(stack, place)), "--seconds", str(seconds), "--warm-up", str(warm)]
        moving = run(stack, *place.relay, sys.executable, "-m", "bench.load", "bulk", *to, stdout=subprocess.PIPE)
        return float(json.loads(line(moving, "The visitor"))["rate"]) * 8e-6


def _ping(address: str, number: int, interval: float) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as sock:
        sock.connect((address, 0))
        sent = [0.0] * number
        trips: list[float] = []
        for sequence in range(number):
            head = struct.pack("!BBHHH", 8, 0, 0, os.getpid() & 0xFFFF, sequence)
            checksum = sum(struct.unpack("!4H", head))
            checksum = ~((checksum & 0xFFFF) + (checksum >> 16)) & 0xFFFF
            sent[sequence] = time.monotonic()
            sock.send(head[:2] + struct.pack("!H", checksum) + head[4:])
            until = sent[sequence] + (interval if sequence < number - 1 else 1.0)
            while len(trips) < number and (left := until - time.monotonic()) > 0:
                sock.settimeout(left)
                with contextlib.suppress(TimeoutError):
                    kind, _, _, _, answered = struct.unpack_from("!BBHHH", sock.recv(MTU), 20)
                    if kind == 0:
                        trips.append((time.monotonic() - sent[answered]) * 1e3)
        print(json.dumps(trips), flush=True)


def _show() -> None:
    """Measure the links of the benchmark."""
    print(
        f"{'link':38} {'ping p50 / p99':>16} {'raw TCP':>14} {'of rate':>8} {'lost':>7} {'overflow':>9} {'late':>6} {'CPU':>6}"
    )
    for spec in LINKS:
        report: dict[str, Any] = {}
        with link(spec) as place:
            trips = sorted(round_trips(place, 200))
        with link(spec, report=report) as place:
            before = time.monotonic()
            rate = raw_tcp(place, 8.0, 2.0)
            lasted = time.monotonic() - before
        taken, overflow, lost, late = (
            sum(report[way][name] for way in WAYS) for name in ("taken", "overflow", "lost", "late")
        )
        ping = f"{statistics.median(trips):.2f} / {trips[len(trips) * 99 // 100]:.2f} ms"
        print(
            f"{spec.title:38} {ping:>16} {rate:>7.1f} Mbit/s {rate / spec.rate:>8.3f} {lost / taken:>7.2%} "
            f"{overflow:>9} {late:>6} {report['cpu'] / lasted:>6.1%}"
        )


def main(arguments: list[str]) -> None:
    match arguments:
        case []:
            if reason := unavailable():
                sys.exit(reason)
            _show()
        case ["between", relay, client, spec, seed]:
            _between(relay, client, Link(*json.loads(spec)), int(seed))
        case ["ping", address, number, interval]:
            _ping(address, int(number), float(interval))
        case _:
            sys.exit("usage: python -m bench.link")


if __name__ == "__main__":
    main(sys.argv[1:])

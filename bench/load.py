"""The visitors: load generators, each a program of its own, so that what they cost is never counted as the relay's.

    python -m bench.load bulk ADDRESS PORT --direction down --streams 1 --seconds 3
    python -m bench.load ping ADDRESS PORT --seconds 3
    python -m bench.load spread ADDRESS PORT[,PORT...] --connections 64 --seconds 3
    python -m bench.load hold ADDRESS PORT --connections 2000 --wish E

They print one line of JSON. `hold` prints "ready" once all stand, and measures how long it takes to wake them all for each line on stdin.
"""

from __future__ import annotations

import argparse
import json
import selectors
import socket
import statistics
import sys
import threading
import time

from bench.targets import MIB, SINK, TOTAL

WARM_UP = 0.3
"""Seconds that a flow may take to find its rate before it is measured, on loopback."""
PATIENCE = 30.0
PING = bytes(32)
BURST = 64
"""Connections that are opened before one of them is waited for: a burst, but not a flood."""


def connect(address: str, port: int, receive_buffer: int = 0) -> socket.socket:
    sock = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
    if receive_buffer:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    sock.settimeout(PATIENCE)
    sock.connect((address, port))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


class Flow(threading.Thread):
    """One bulk stream; `moved` counts the bytes that have arrived at the far end."""

    def __init__(self, address: str, port: int, direction: str) -> None:
        super().__init__(daemon=True)
        self.sock = connect(address, port)
        self.moved = 0
        self.down = direction == "down"

    def run(self) -> None:
        try:
            if self.down:
                self.sock.sendall(b"D")
                while size := self.sock.recv_into(SINK, MIB, socket.MSG_TRUNC):
                    self.moved += size
            else:
                threading.Thread(target=self.send, daemon=True).start()
                while totals := self.sock.recv(TOTAL.size, socket.MSG_WAITALL):
                    self.moved = TOTAL.unpack(totals)[0]
        except OSError:
            pass

    def send(self) -> None:
        try:
            self.sock.sendall(b"U")
            block = bytes(MIB)
            while True:
                self.sock.sendall(block)
        except OSError:
            pass


def bulk(address: str, port: int, direction: str, streams: int, seconds: float, warm_up: float) -> dict[str, object]:
    """Bytes a second over all streams after the warm-up, bytes in all, and of each stream the share that it got."""
    flows = [Flow(address, port, direction) for _ in range(streams)]
    for flow in flows:
        flow.start()
    time.sleep(warm_up)
    begin, first = time.perf_counter(), [flow.moved for flow in flows]
    time.sleep(seconds)
    span = time.perf_counter() - begin
    last = [flow.moved for flow in flows]
    moved = sum(last) - sum(first)
    return {"rate": moved / span, "bytes": sum(last), "least": min(b - a for a, b in zip(first, last, strict=True))}


def percentiles(seconds: list[float]) -> list[float]:
    """The 0th to the 100th, in µs."""
    ordered = sorted(seconds)
    inner = statistics.quantiles(ordered, n=100, method="inclusive") if len(ordered) > 1 else ordered * 99
    return [round(value * 1e6, 1) for value in (ordered[0], *inner, ordered[-1])]


def ping(address: str, port: int, seconds: float, warm_up: float) -> dict[str, object]:
    """Round trips of 32 bytes, one after the other."""
    sock = connect(address, port)
    taken = []
    sock.sendall(b"E")
    begin = time.perf_counter()
    while True:
        start = time.perf_counter()
        sock.sendall(PING)
        left = len(PING)
        while left:
            piece = sock.recv(left)
            if not piece:
                raise ConnectionError("the connection ended")
            left -= len(piece)
        now = time.perf_counter()
        if start - begin > warm_up:
            taken.append(now - start)
        if now - begin > warm_up + seconds:
            return {"count": len(taken), "latencies": percentiles(taken)}


def spread(address: str, ports: list[int], connections: int, seconds: float) -> dict[str, object]:
    """HTTP requests with keep-alive on `connections`, dealt to the ports in turn, each asking again when it was answered."""
    request = b"GET / HTTP/1.1\r\nHost: bench\r\n\r\n"
    selector = selectors.DefaultSelector()
    socks = [connect(address, ports[number % len(ports)]) for number in range(connections)]
    for sock in socks:
        sock.sendall(request)
    answers = {len(sock.recv(65_536)) for sock in socks}  # all alike, and small enough to come whole
    if len(answers) != 1:
        raise ConnectionError(f"answers of {sorted(answers)} bytes where all should be alike")
    size = answers.pop()
    for sock in socks:
        sock.setblocking(False)
        selector.register(sock, selectors.EVENT_READ)
        sock.send(request)
    done = 0
    begin = time.perf_counter()
    while (now := time.perf_counter()) - begin < seconds:
        for key, _ in selector.select(1):
            sock = key.fileobj  # type: ignore[assignment]
            if len(sock.recv(65_536)) != size:
                raise ConnectionError("an answer was cut")
            sock.send(request)
            done += 1
    return {"rate": done / (now - begin), "count": done}


def wait_for_echo(sock: socket.socket) -> None:
    if not sock.recv(1):
        raise ConnectionError("the connection ended")


def hold(address: str, port: int, connections: int, wish: bytes) -> None:
    """Hold connections; for each line on stdin send a byte on every one and wait for all echoes."""
    # Those who stall hold little themselves, else the memory that the kernel has for all of TCP is what is measured.
    socks = [connect(address, port, 65_536 if wish == b"S" else 0) for _ in range(connections)]
    for number, sock in enumerate(socks):
        sock.sendall(wish)
        if wish == b"E":
            sock.sendall(b"x")
            if number % BURST == BURST - 1:
                wait_for_echo(sock)
                sock.sendall(b"x")
    if wish == b"E":
        for sock in socks:
            wait_for_echo(sock)
    print(json.dumps({"ready": len(socks)}), flush=True)
    for _ in sys.stdin:
        begin = time.perf_counter()
        for sock in socks:
            sock.sendall(b"x")
        for sock in socks:
            wait_for_echo(sock)
        print(json.dumps({"wake": time.perf_counter() - begin}), flush=True)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("kind", choices=["bulk", "ping", "spread", "hold"])
    options.add_argument("address")
    options.add_argument("port", type=lambda text: [int(port) for port in text.split(",")])
    options.add_argument("--direction", choices=["down", "up"], default="down")
    options.add_argument("--streams", type=int, default=1)
    options.add_argument("--connections", type=int, default=1)
    options.add_argument("--seconds", type=float, default=3.0)
    options.add_argument("--warm-up", type=float, default=WARM_UP)
    options.add_argument("--wish", choices=["E", "S"], default="E")
    chosen = options.parse_args()
    address, port, seconds = chosen.address, chosen.port[0], chosen.seconds
    try:
        if chosen.kind == "hold":
            hold(address, port, chosen.connections, chosen.wish.encode())
            return
        if chosen.kind == "bulk":
            answer = bulk(address, port, chosen.direction, chosen.streams, seconds, chosen.warm_up)
        elif chosen.kind == "ping":
            answer = ping(address, port, seconds, chosen.warm_up)
        else:
            answer = spread(address, chosen.port, chosen.connections, seconds)
    except OSError as error:
        answer = {"failed": f"{error}" or type(error).__name__}
    print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()

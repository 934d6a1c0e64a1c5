"""What the systems under test lead to: nginx for requests, and one program that moves bytes as the first byte of a connection asks.

    D  send until the connection ends             U  take everything, and say every MiB how many bytes (8, big-endian) there were
    E  echo                                        S  send, from the process that serves all of them: for thousands that stall

D and U have a process of their own each, so that an echo beside them waits for the relay under test and not for this program.
"""

from __future__ import annotations

import os
import selectors
import signal
import socket
import struct
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import cast

from bench.programs import BenchError, Place, find, free_port, line, run, wait_for

MIB = 1 << 20
TOTAL = struct.Struct(">Q")
BACKLOG = 4096
SINK = bytearray(MIB)
"""What is read goes here, and with MSG_TRUNC nowhere: the kernel throws it away."""


def web(stack: ExitStack, place: Place, directory: Path) -> int:
    """An nginx that answers every request with two words; its port at the client."""
    nginx = find("nginx")
    if nginx is None:
        raise BenchError("nginx, the target of requests, is not on PATH; install it with `apt install nginx`.")
    port = free_port()
    conf = directory / "web.conf"
    conf.write_text(
        f"daemon off; worker_processes 1; pid {directory}/web.pid; error_log /dev/null; events {{ worker_connections 16384; }}\n"
        "http { access_log off; keepalive_requests 1000000000; keepalive_timeout 600s;\n"
        f'  server {{ listen 127.0.0.1:{port} backlog={BACKLOG}; location / {{ return 200 "hello world\\n"; }} }} }}\n'
    )
    run(stack, *place.client, nginx, "-c", str(conf), "-p", str(directory))
    wait_for(("127.0.0.1", port), "nginx", place.client)
    return port


def mover(stack: ExitStack, place: Place) -> int:
    """The program of this module; its port at the client."""
    host = "0.0.0.0" if place.client else "127.0.0.1"  # without a relay, visitors come over the link
    program = run(stack, *place.client, sys.executable, "-m", "bench.targets", host, stdout=-1)
    return int(line(program, "the target of the bench"))


class Mover:
    def __init__(self, host: str) -> None:
        self.listener = socket.create_server((host, 0), backlog=BACKLOG)
        self.listener.setblocking(False)
        self.block = bytes(MIB)
        self.selector = selectors.DefaultSelector()
        self.selector.register(self.listener, selectors.EVENT_READ, self.accept)

    def serve(self) -> None:
        while True:
            for key, _ in self.selector.select():
                key.data(key.fileobj)

    def accept(self, _: socket.socket) -> None:
        try:
            while True:
                sock, _ = self.listener.accept()
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                sock.setblocking(False)
                self.selector.register(sock, selectors.EVENT_READ, self.first)
        except BlockingIOError:
            pass

    def first(self, sock: socket.socket) -> None:
        try:
            wish = sock.recv(1)
        except OSError:
            wish = b""
        if wish == b"E":
            self.selector.modify(sock, selectors.EVENT_READ, self.echo)
        elif wish == b"S":
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65_536)  # what waits here is not what is measured
            self.selector.modify(sock, selectors.EVENT_WRITE, self.pour)
        else:
            self.selector.unregister(sock)
            if wish in (b"D", b"U"):
                self.fork(sock, wish)
            sock.close()

    def fork(self, sock: socket.socket, wish: bytes) -> None:
        if os.fork():
            return
        try:
            fd = sock.fileno()
            os.closerange(3, fd)  # a copy of another connection would keep it from ending
            os.closerange(fd + 1, os.sysconf("SC_OPEN_MAX"))
            sock.setblocking(True)
            if wish == b"D":
                while True:
                    sock.sendall(self.block)
            self.take(sock)
        except OSError:
            pass
        finally:
            os._exit(0)

    def take(self, sock: socket.socket) -> None:
        total = said = 0
        while size := sock.recv_into(SINK, MIB, socket.MSG_TRUNC):
            total += size
            if total - said >= MIB:
                sock.sendall(TOTAL.pack(total))
                said = total

    def echo(self, sock: socket.socket) -> None:
        try:
            data = sock.recv(65_536)
            if data:
                sock.sendall(data)
                return
        except OSError:
            pass
        self.end(sock)

    def pour(self, sock: socket.socket) -> None:
        try:
            sock.send(self.block)
        except BlockingIOError:
            pass
        except OSError:
            self.end(sock)

    def end(self, sock: socket.socket) -> None:
        self.selector.unregister(sock)
        sock.close()


def main() -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    mover = Mover(sys.argv[1])
    print(cast("tuple[str, int]", mover.listener.getsockname())[1], flush=True)
    mover.serve()


if __name__ == "__main__":
    main()

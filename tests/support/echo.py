"""`python -m tests.support.echo [--discard] [--greet] [unix path]`: a target in a process of its own, for thousands of connections at once.

Prints its port (or the path) when it listens. With --greet it speaks first. Half-close is answered with half-close. Needs nothing but the standard library.
"""

from __future__ import annotations

import select
import socket
import sys


def serve(listener: socket.socket, *, discard: bool, greet: bool) -> None:
    """Answer for ever. One thread, level-triggered epoll, at most one piece of 64 KiB held for each connection."""
    listener.setblocking(False)
    poller = select.epoll()
    poller.register(listener, select.EPOLLIN)
    open_: dict[int, socket.socket] = {}
    waiting: dict[int, bytes] = {}
    while True:
        for number, _ in poller.poll():
            if number == listener.fileno():
                accept_all(listener, poller, open_, greet)
                continue
            sock = open_[number]
            piece = b""
            try:
                piece = waiting.pop(number, b"") or sock.recv(65_536)
                if not piece:
                    poller.unregister(number)
                    del open_[number]
                    sock.close()
                    continue
                rest = b"" if discard else piece[sock.send(piece) :]
            except BlockingIOError:
                rest = piece
            except OSError:
                poller.unregister(number)
                del open_[number]
                sock.close()
                continue
            if rest:
                waiting[number] = rest
            poller.modify(number, select.EPOLLOUT if rest else select.EPOLLIN)


def accept_all(listener: socket.socket, poller: select.epoll, open_: dict[int, socket.socket], greet: bool) -> None:
    while True:
        try:
            sock, _ = listener.accept()
        except BlockingIOError:
            return
        sock.setblocking(False)
        if greet:
            sock.send(b"welcome\n")
        open_[sock.fileno()] = sock
        poller.register(sock, select.EPOLLIN)


def main(arguments: list[str]) -> None:
    discard = "--discard" in arguments
    paths = [argument for argument in arguments if not argument.startswith("--")]
    if paths:
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(paths[0])
        listener.listen(4096)
        print(paths[0], flush=True)
    else:
        listener = socket.create_server(("127.0.0.1", 0), backlog=4096)
        print(listener.getsockname()[1], flush=True)
    serve(listener, discard=discard, greet="--greet" in arguments)


if __name__ == "__main__":
    main(sys.argv[1:])

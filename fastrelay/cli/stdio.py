"""Standard input and output of this process as the other end of a socket: pipes, files and terminals are none, so two threads carry the bytes."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import threading

_CHUNK = 65_536


class Stdio:
    """`socket` ends its direction when stdin has ended; stdout ends when the other end of `socket` has ended its direction."""

    def __init__(self) -> None:
        self.socket, self._ours = socket.socketpair()
        self._out = threading.Thread(target=self._write, daemon=True)

    def start(self) -> None:
        threading.Thread(target=self._read, daemon=True).start()
        self._out.start()

    def finish(self) -> None:
        """Wait until stdout has taken everything."""
        self._out.join()

    def _read(self) -> None:
        with contextlib.suppress(OSError):
            while data := _when_ready(0, read=True) and os.read(0, _CHUNK):
                self._ours.sendall(data)
            self._ours.shutdown(socket.SHUT_WR)

    def _write(self) -> None:
        try:
            while data := self._ours.recv(_CHUNK):
                while data:
                    _when_ready(1, read=False)
                    data = data[os.write(1, data) :]
        except OSError:  # a reset, or nobody reads stdout any more
            with contextlib.suppress(OSError):
                self._ours.shutdown(socket.SHUT_RDWR)
        # Whoever reads stdout sees its end now; the other direction may go on.
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, 1)
        os.close(nothing)


def _when_ready(fd: int, *, read: bool) -> bool:
    """Wait, as a descriptor that was inherited may be one that does not."""
    with contextlib.suppress(OSError, ValueError):
        select.select([fd] if read else [], [] if read else [fd], [])
    return True

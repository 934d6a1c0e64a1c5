"""The audit log: every event as one JSON object a line, in a file that is only appended to (README, "Audit log").

Whoever logs never waits: lines go through a queue to a thread that writes them. What the disk does not take stays in the queue; what comes
when that is full is dropped and counted, and the count goes into the file as soon as there is room.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
import threading
import time
from pathlib import Path
from typing import Final, Self

from fastrelay import log
from fastrelay.errors import StartError

QUEUE: Final = 10_000
"""Lines that may wait."""
_GATHER: Final = 0.05
"""Seconds from a line to its write: a thread that woke for each would take the interpreter from the loop each time."""
_LOOK_EVERY: Final = 1.0
"""Seconds between two looks at where the path leads."""
_RETRY: Final = 1.0
_COMPLAIN_EVERY: Final = 60.0
_LAST_WORDS: Final = 5.0
"""Seconds that the end of the process waits for a disk."""


class AuditLog(logging.Handler):
    """Takes every event, notes too, from `open` to `close`; as a context manager it closes itself."""

    def __init__(self, path: Path, fd: int) -> None:
        super().__init__()
        self.setFormatter(log.JsonLines())
        self.path = path
        self.failures = 0
        self._fd = fd
        self._cut = _is_cut(fd)  # the file ends in half a line
        self._lock = threading.Lock()
        self._queue: list[str] = []
        self._dropped = 0  # events that the queue had no room for, and the file does not know of yet
        self._wake = threading.Event()
        self._ending = threading.Event()
        self._asked = False  # to open the file anew
        self._look_at = time.monotonic() + _LOOK_EVERY
        self._complain_at = 0.0
        self._thread = threading.Thread(target=self._work, name="audit", daemon=True)

    @classmethod
    def open(cls, path: Path) -> Self:
        """Append to the file `path`, which is made for its owner only.

        Raises StartError when it cannot be written, is no file, or others can read it.
        """
        try:
            handler = cls(path, _open(path))
        except OSError as error:
            raise StartError(
                f"The audit log {path} cannot be used, because {error.strerror or error}: give --audit a file that this user "
                "can write and nobody else can read."
            ) from None
        logging.getLogger().addHandler(handler)
        log.audit(handler.hear)
        handler._thread.start()
        return handler

    def reopen(self) -> None:
        """Go on in the file that the path leads to now. Returns at once; without being asked it happens within a second."""
        self._asked = True
        self._wake.set()

    def close(self) -> None:
        """Write what waits, if the disk takes it within 5 s. May be called again."""
        logging.getLogger().removeHandler(self)
        log.audit(None)
        if not self._ending.is_set():
            self._ending.set()
            self._wake.set()
            self._thread.join(_LAST_WORDS)
            lost = self._dropped + len(self._queue)
            if lost or self._thread.is_alive():
                log.error("audit.lost", f"The end of the audit log {self.path} was not written.", events=lost)
        super().close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- who logs ------------------------------------------------------------------------------------------------------

    def emit(self, record: logging.LogRecord) -> None:
        """What goes to the console."""
        try:
            self._put(self.format(record))
        except Exception:  # the form of all handlers: logging decides who is told
            self.handleError(record)

    def hear(self, event: str, text: str, fields: dict[str, object]) -> None:
        """What does not."""
        self._put(log.line(time.time(), "note", event, text, fields))

    def _put(self, line: str) -> None:
        """From any thread."""
        with self._lock:
            queue = self._queue
            if len(queue) >= QUEUE:
                self._dropped += 1
                return
            queue.append(line)
            if len(queue) == 1:
                self._wake.set()

    # --- the thread ----------------------------------------------------------------------------------------------------

    def _work(self) -> None:
        while not self._ending.is_set():
            self._wake.wait()
            self._ending.wait(_GATHER)
            self._write(*self._take())
        self._write(*self._take())
        os.close(self._fd)

    def _take(self) -> tuple[bytes, int]:
        """All that waits; and how many events were dropped, which is then the last line of it."""
        with self._lock:
            self._wake.clear()
            lines, self._queue = self._queue, []
            dropped, self._dropped = self._dropped, 0
        if dropped:
            text = f"{dropped} events are missing here, because the audit log could not be written."
            lines.append(self.format(log.record(logging.WARNING, "audit.dropped", text, events=dropped)))
        lines.append("")  # so that the last one ends as the others do
        return "\n".join(lines).encode("ascii"), dropped

    def _write(self, data: bytes, dropped: int) -> None:
        """Returns when the disk has taken all of it, or when it does not and the process ends."""
        while True:
            try:
                self._follow()
                while data:
                    data = self._append(data)
                return
            except OSError as error:
                self._complain(error)
            if self._ending.wait(_RETRY):
                self._dropped += data.count(b"\n") - bool(dropped) + dropped
                return

    def _append(self, data: bytes) -> bytes:
        """Returns what is left; always whole lines."""
        if self._cut:
            os.write(self._fd, b"\n")
            self._cut = False
        done = os.write(self._fd, data)
        if done < len(data):  # the disk is full: the line that was cut off is said again
            self._cut = data[done - 1 : done] != b"\n"
            done = data.rfind(b"\n", 0, done) + 1
        return data[done:]

    def _follow(self) -> None:
        """A file that was moved away or deleted is begun anew. One that cannot be is no reason to leave the old one, while that exists."""
        now = time.monotonic()
        if now < self._look_at and not self._asked:
            return
        self._asked = False
        try:
            fd = _open(self.path)
        except OSError as error:
            if not os.fstat(self._fd).st_nlink:
                raise
            self._complain(error)
        else:
            os.close(self._fd)
            self._fd = fd
            self._cut = _is_cut(fd)
        self._look_at = now + _LOOK_EVERY

    def _complain(self, error: OSError) -> None:
        self.failures += 1
        now = time.monotonic()
        if now >= self._complain_at:
            self._complain_at = now + _COMPLAIN_EVERY
            log.error(
                "audit.failed",
                f"The audit log {self.path} cannot be written ({error.strerror or error}): up to {QUEUE} events wait until it can, "
                "more are lost.",
                failures=self.failures,
            )


def _open(path: Path) -> int:
    """A descriptor that appends. Raises OSError, also for a file that others can read or write, or that is none."""
    fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK, 0o600)
    try:
        file = os.fstat(fd)
        if not stat.S_ISREG(file.st_mode):
            raise OSError(errno.EINVAL, "it is not a file that can be appended to")
        if file.st_uid != os.geteuid():
            raise PermissionError(errno.EPERM, "it belongs to another user")
        if file.st_mode & 0o077:
            raise PermissionError(errno.EPERM, f"others can read or write it (run `chmod 600 {path}`)")
    except BaseException:
        os.close(fd)
        raise
    return fd


def _is_cut(fd: int) -> bool:
    """Whether the last line was not written to its end: by a disk that was full, or a machine that stopped."""
    size = os.fstat(fd).st_size
    return size > 0 and os.pread(fd, 1, size - 1) != b"\n"

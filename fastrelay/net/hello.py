"""What a ClientHello asks for (RFC 8446, 4.1.2): the host, and the protocols. So one port can lead to several doors, each with a certificate
of its own. Pure.
"""

from __future__ import annotations

from typing import Final, NamedTuple

_RECORD: Final = 5  # bytes of a record's head
_FIXED: Final = 4 + 2 + 32
"""Bytes of the handshake's head, the version and the random."""
_SERVER_NAME: Final = 0
_ALPN: Final = 16
_HOST_NAME: Final = b"\0"


class Asked(NamedTuple):
    """`host` is in lower case, "" where none is named; `protocols` are those of ALPN."""

    host: str
    protocols: tuple[bytes, ...]


NOTHING: Final = Asked("", ())


def asked(hello: bytes) -> Asked:
    """What a whole ClientHello, in one record, asks for; nothing if it is none."""
    host = ""
    protocols: tuple[bytes, ...] = ()
    try:
        raw = _Raw(hello, _RECORD + _FIXED, len(hello))
        if hello[:1] != b"\x16" or hello[_RECORD : _RECORD + 1] != b"\x01":
            return NOTHING
        for size in (1, 2, 1):  # session id, cipher suites, compression
            raw.take(size)
        extensions = raw.inside(2)
        while extensions.left:
            kind = extensions.number(2)
            value = extensions.inside(2)
            if kind == _SERVER_NAME:
                names = value.inside(2)
                if names.read(1) == _HOST_NAME:
                    host = names.take(2).decode("ascii").lower()
            elif kind == _ALPN:
                listed = value.inside(2)
                found = []
                while listed.left:
                    found.append(listed.take(1))
                protocols = tuple(found)
    except ValueError:  # it ends too early, or the host is not ASCII: TLS will say so
        return NOTHING
    return Asked(host, protocols)


class _Raw:
    """Bytes from `at` to `end`, read from the front. Raises ValueError when there are not enough."""

    __slots__ = ("_at", "_data", "_end")

    def __init__(self, data: bytes, at: int, end: int) -> None:
        if at > end:
            raise ValueError("too short")
        self._data, self._at, self._end = data, at, end

    @property
    def left(self) -> int:
        return self._end - self._at

    def read(self, size: int) -> bytes:
        at = self._at
        if size > self._end - at:
            raise ValueError("too short")
        self._at = at + size
        return self._data[at : self._at]

    def number(self, size: int) -> int:
        return int.from_bytes(self.read(size))

    def take(self, size: int) -> bytes:
        """A vector whose length is in `size` bytes before it."""
        return self.read(self.number(size))

    def inside(self, size: int) -> _Raw:
        """The same, to be read on."""
        length = self.number(size)
        inner = _Raw(self._data, self._at, self._at + length)
        self.read(length)
        return inner

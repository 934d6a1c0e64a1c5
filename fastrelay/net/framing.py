"""Frames of WebSocket (RFC 6455, section 5), as far as tunnels need them (protocol.md 2.1): their bytes become payload, and payload becomes frames.

Pure. Invariant: for the same bytes, cut in any way, the calls are the same, but for a payload that is handed on in several pieces, or the same
ProtocolError is raised. Payload passes through and is never kept; of a head or a control frame that is cut in two at most 139 bytes are.

`websockets` shakes hands, and reads what Close says. Its parser is not used for what comes then: it keeps each message whole, which a stranger
could make large, and copies it three times.
"""

from __future__ import annotations

import os
import struct
from typing import Final

from fastrelay.errors import Code, ProtocolError
from fastrelay.wire import MAX_MESSAGE

try:
    from websockets.speedups import apply_mask
except ImportError:  # where it was installed without a compiler
    from websockets.utils import apply_mask

CONTINUATION: Final = 0x0
TEXT: Final = 0x1
BINARY: Final = 0x2
CLOSE: Final = 0x8
PING: Final = 0x9
PONG: Final = 0xA

_CONTROL: Final = 0x8  # the bit of opcodes that are control frames
_FIN: Final = 0x80
_RESERVED: Final = 0x70
_MASKED: Final = 0x80
_MOST_CONTROL: Final = 125
_LENGTH_16: Final = 126
_LENGTH_64: Final = 127
_SHORT: Final = struct.Struct(">BB")
_MEDIUM: Final = struct.Struct(">BBH")
_LONG: Final = struct.Struct(">BBQ")


def frame(
    opcode: int, payload: bytes | bytearray | memoryview, masked: bool
) -> tuple[bytes, bytes | bytearray | memoryview]:
    """A whole frame in two parts: its head, and its payload, which is `payload` itself unless it is `masked`."""
    size = len(payload)
    flag = _MASKED if masked else 0
    if size <= _MOST_CONTROL:
        head = _SHORT.pack(_FIN | opcode, flag | size)
    elif size < 1 << 16:
        head = _MEDIUM.pack(_FIN | opcode, flag | _LENGTH_16, size)
    else:
        head = _LONG.pack(_FIN | opcode, flag | _LENGTH_64, size)
    if not masked:
        return head, payload
    mask = os.urandom(4)
    return head + mask, apply_mask(payload, mask)


class Unframer:
    """Base of what reads: `feed` it what arrives. `masked` says whether the other side masks, as clients do, or must not."""

    def __init__(self, masked: bool) -> None:
        self.stopped = False  # set from inside a call: the rest is thrown away
        self._masked = masked
        self._carry = bytearray()  # a head, or a control frame, that is not whole yet
        self._rest = 0  # bytes still to come of the payload that is under way
        self._mask = b""  # for the next byte of it
        self._message = -1  # bytes of the message that is under way, which goes on in another frame; else -1

    def on_payload(self, piece: memoryview, now: float) -> None:
        """Some of a binary message; valid only during the call."""
        raise NotImplementedError

    def on_control(self, opcode: int, payload: bytes, now: float) -> None:
        raise NotImplementedError

    def on_empty(self, now: float) -> None:
        """A fragment without payload."""
        raise NotImplementedError

    def unframe(self, chunk: memoryview, now: float) -> None:
        """Take the next bytes. Raises ProtocolError (PROTOCOL, FRAME_SIZE), and is of no use after that."""
        at, end = 0, len(chunk)
        while at < end and not self.stopped:
            if self._rest:
                at = self._pass_on(chunk, at, end, now)
            elif not self._carry and end - at >= 2 and at + (size := self._size(chunk[at], chunk[at + 1])) <= end:
                self._begin(bytes(chunk[at : at + size]), now)
                at += size
            else:
                at = self._fill(chunk, at, end, now)

    def _fill(self, chunk: memoryview, at: int, end: int, now: float) -> int:
        carry = self._carry
        size = 2 if len(carry) < 2 else self._size(carry[0], carry[1])
        stop = min(end, at + size - len(carry))
        carry += chunk[at:stop]
        if len(carry) >= 2 and len(carry) == self._size(carry[0], carry[1]):
            whole = bytes(carry)
            carry.clear()
            self._begin(whole, now)
        return stop

    def _size(self, first: int, second: int) -> int:
        """Bytes of a head that begins with these two, with the payload if it is a control frame. They are checked here."""
        opcode = first & 0x0F
        length = second & 0x7F
        if first & _RESERVED:
            raise _broken("a reserved bit is set")
        if bool(second & _MASKED) is not self._masked:
            raise _broken("a frame is not masked" if self._masked else "a frame is masked")
        size = 2 + (4 if self._masked else 0)
        if opcode & _CONTROL:
            if opcode not in (CLOSE, PING, PONG):
                raise _broken(f"the opcode {opcode} is not known")
            if not first & _FIN or length > _MOST_CONTROL:
                raise _broken("a control frame is too long, or in pieces")
            return size + length
        if opcode == TEXT:
            raise _broken("a text message, and only binary ones carry a tunnel")
        if opcode not in (CONTINUATION, BINARY):
            raise _broken(f"the opcode {opcode} is not known")
        if (opcode == CONTINUATION) is (self._message < 0):
            raise _broken("a fragment is out of place")
        return size + (8 if length == _LENGTH_64 else 2 if length == _LENGTH_16 else 0)

    def _begin(self, head: bytes, now: float) -> None:
        """What `_size` has measured is here."""
        length = head[1] & 0x7F
        at = 2
        if length == _LENGTH_16:
            at, length = 4, int.from_bytes(head[2:4])
        elif length == _LENGTH_64:
            at, length = 10, int.from_bytes(head[2:10])
        if self._masked:
            self._mask = head[at : at + 4]
            at += 4
        opcode = head[0] & 0x0F
        if opcode & _CONTROL:
            payload = head[at:]
            self.on_control(opcode, apply_mask(payload, self._mask) if self._masked else payload, now)
            return
        message = max(0, self._message) + length
        if message > MAX_MESSAGE:
            raise ProtocolError(Code.FRAME_SIZE, f"a WebSocket message of more than {MAX_MESSAGE} bytes")
        self._message = -1 if head[0] & _FIN else message
        self._rest = length
        if not length:
            self.on_empty(now)

    def _pass_on(self, chunk: memoryview, at: int, end: int, now: float) -> int:
        stop = min(at + self._rest, end)
        piece = chunk[at:stop]
        self._rest -= stop - at
        if self._masked:
            piece = memoryview(apply_mask(piece, self._mask))
            if turn := (stop - at) % 4:
                self._mask = self._mask[turn:] + self._mask[:turn]
        self.on_payload(piece, now)
        return stop


def _broken(text: str) -> ProtocolError:
    return ProtocolError(Code.PROTOCOL, f"WebSocket: {text}")

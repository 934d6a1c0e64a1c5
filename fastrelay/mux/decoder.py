"""Bytes of a tunnel become calls (protocol.md section 3).

Invariant: for the same bytes, cut in any way, the calls are the same, but for a DATA payload that is handed on in several pieces, or the
same ProtocolError is raised. Payload passes through and is never kept: only a header or a control frame that is cut in two is carried,
which is less than HEADER_SIZE + MAX_CONTROL bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

from fastrelay.errors import Code, ProtocolError
from fastrelay.wire import HEADER, HEADER_SIZE, Kind, check_size

_FIN = Kind.FIN << 24
_BEHIND_FIN = (Kind.FIN + 1) << 24


class Sink(Protocol):
    """Where DATA of one stream goes. A piece is valid only during the call."""

    def receive(self, piece: memoryview) -> None: ...
    def receive_fin(self) -> None: ...


class Decoder:
    """`feed` it what arrives. `sinks` maps stream ids to where their DATA goes; every other frame goes to `control(kind, stream, payload)`.

    DATA for an id without a sink goes to `stray(stream)`, empty DATA also to `empty(stream)`; both raise ProtocolError or let it pass.
    """

    __slots__ = ("_carry", "_ends", "_rest", "_sink", "control", "empty", "max_data", "sinks", "stopped", "stray")

    def __init__(self, sinks: Mapping[int, Sink]) -> None:
        self.sinks = sinks
        self.stopped = False  # set from inside a call: the rest of the chunk is thrown away
        self._carry = bytearray()  # a header or control frame that is not whole yet
        self._rest = 0  # payload bytes still to come of the DATA or FIN frame that is under way
        self._sink: Sink | None = None
        self._ends = False

    def hand_to(
        self,
        control: Callable[[int, int, bytes], None],
        stray: Callable[[int], None],
        empty: Callable[[int], None],
        max_data: int,
    ) -> None:
        """Send the calls elsewhere from now on, also those for the rest of the chunk that is being fed. No DATA may be under way any more."""
        self.control = control
        self.stray = stray
        self.empty = empty
        self.max_data = max_data
        self._sink = None

    def feed(self, chunk: memoryview) -> None:
        """Take the next bytes of the tunnel. Raises ProtocolError; the decoder is of no use after that."""
        if self.stopped:
            return
        end = len(chunk)
        at = self._resume(chunk, end) if self._rest or self._carry else 0
        unpack = HEADER.unpack_from
        sinks = self.sinks
        while end - at >= HEADER_SIZE and not self.stopped:
            word, stream = unpack(chunk, at)
            at += HEADER_SIZE
            if 0 < word <= self.max_data and at + word <= end and stream in sinks:
                stop = at + word  # a whole DATA frame: Kind.DATA is 0, so the word is its length
                sinks[stream].receive(chunk[at:stop])
                at = stop
            elif word < _BEHIND_FIN:
                self._begin(word, stream)
                at = self._pass_on(chunk, at, end)
            else:
                length = word & 0xFFFFFF
                stop = at + length
                check_size(word >> 24, length, stream)
                if stop > end:
                    at -= HEADER_SIZE
                    break
                self.control(word >> 24, stream, bytes(chunk[at:stop]))
                at = stop
        if at < end and not self.stopped:
            self._carry += chunk[at:]

    def _resume(self, chunk: memoryview, end: int) -> int:
        """Go on with what the last chunk left unfinished; returns where the next header begins."""
        if self._rest:
            return self._pass_on(chunk, 0, end)
        carry = self._carry
        at = self._fill(HEADER_SIZE, chunk, 0, end)
        if len(carry) < HEADER_SIZE:
            return at
        word, stream = HEADER.unpack_from(carry)
        if word < _BEHIND_FIN:
            carry.clear()
            self._begin(word, stream)
            return self._pass_on(chunk, at, end)
        length = word & 0xFFFFFF
        check_size(word >> 24, length, stream)
        at = self._fill(HEADER_SIZE + length, chunk, at, end)
        if len(carry) == HEADER_SIZE + length:
            payload = bytes(carry[HEADER_SIZE:])
            carry.clear()
            self.control(word >> 24, stream, payload)
        return at

    def _fill(self, size: int, chunk: memoryview, at: int, end: int) -> int:
        stop = min(at + max(size - len(self._carry), 0), end)
        self._carry += chunk[at:stop]
        return stop

    def _begin(self, word: int, stream: int) -> None:
        """The header of a DATA or FIN frame, checked before a byte of its payload is looked at."""
        length = word & 0xFFFFFF
        if length > self.max_data:
            raise ProtocolError(
                Code.FRAME_SIZE, f"stream {stream}: a frame of {length} bytes, at most {self.max_data} are allowed"
            )
        self._sink = self.sinks.get(stream)
        if self._sink is None:
            self.stray(stream)
        self._ends = word >= _FIN
        self._rest = length
        if not length and not self._ends:
            self.empty(stream)

    def _pass_on(self, chunk: memoryview, at: int, end: int) -> int:
        """Hand on what is here of the frame under way; returns where it ends, or the end of the chunk."""
        stop = min(at + self._rest, end)
        sink = self._sink
        self._rest -= stop - at
        if sink is not None:
            if stop > at:
                sink.receive(chunk[at:stop])
            if not self._rest and self._ends and not self.stopped:
                sink.receive_fin()
        return stop

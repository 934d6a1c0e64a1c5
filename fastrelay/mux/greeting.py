"""The four frames before a session (protocol.md section 4): who may say what, and when.

Invariant: nothing but the next expected frame is even parsed. The proofs themselves are `fastrelay.auth`.
"""

from __future__ import annotations

from collections.abc import Callable

from fastrelay import wire
from fastrelay.auth import ClientLogin, RelayLogin
from fastrelay.errors import Code, ProtocolError, RefusedError
from fastrelay.mux.decoder import Decoder
from fastrelay.wire import Kind


class Greeting:
    """What both sides share: one expected kind after the other. The session takes over the decoder when the last one has come."""

    def __init__(self, decoder: Decoder, write: Callable[[bytes], None]) -> None:
        self._write = write
        self._expected = Kind.HELLO
        self._decoder = decoder
        decoder.hand_to(self._control, self._stray, self._stray, wire.MIN_MAX_DATA)

    def feed(self, chunk: memoryview, now: float) -> None:
        self._decoder.feed(chunk)

    def _control(self, kind: int, stream: int, payload: bytes) -> None:
        if kind == Kind.GOAWAY:
            _, code, text = wire.unpack_goaway(payload)
            raise RefusedError(code, text)
        if kind != self._expected:
            raise ProtocolError(Code.PROTOCOL, f"{self._expected.name} was due, not a frame of kind 0x{kind:02x}")
        self._step(payload)

    def _step(self, payload: bytes) -> None:
        raise NotImplementedError

    def _stray(self, stream: int) -> None:
        raise ProtocolError(Code.PROTOCOL, f"{self._expected.name} was due, not data")


class ClientGreeting(Greeting):
    """`done(welcome, theirs)` is called when the relay has proved itself."""

    def __init__(
        self,
        decoder: Decoder,
        login: ClientLogin,
        write: Callable[[bytes], None],
        done: Callable[[wire.Welcome, wire.Settings], None],
    ) -> None:
        super().__init__(decoder, write)
        self._login = login
        self._done = done

    def start(self) -> None:
        self._write(wire.frame(Kind.HELLO, 0, self._login.hello()))

    def _step(self, payload: bytes) -> None:
        if self._expected is Kind.HELLO:
            self._write(wire.frame(Kind.AUTH, 0, self._login.auth(payload)))
            self._expected = Kind.WELCOME
        else:
            welcome = self._login.welcome(payload)
            self._done(welcome, self._login.peer.settings)


class RelayGreeting(Greeting):
    """`admit(auth, theirs)` is called when the client has proved itself: it raises ProtocolError, or returns (session name, host)."""

    def __init__(
        self,
        decoder: Decoder,
        login: RelayLogin,
        write: Callable[[bytes], None],
        admit: Callable[[wire.Auth, wire.Settings], tuple[str, str]],
        done: Callable[[], None],
    ) -> None:
        super().__init__(decoder, write)
        self._login = login
        self._admit = admit
        self._done = done

    def _step(self, payload: bytes) -> None:
        if self._expected is Kind.HELLO:
            self._write(wire.frame(Kind.HELLO, 0, self._login.hello(payload)))
            self._expected = Kind.AUTH
        else:
            auth = self._login.auth(payload)
            session, host = self._admit(auth, self._login.peer.settings)
            self._write(wire.frame(Kind.WELCOME, 0, self._login.welcome(session, host)))
            self._done()

"""The client inside of a program: what is exposed may come and go, and a service may be a protocol of the program instead of a target."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from weakref import WeakSet

from fastrelay import wire
from fastrelay.api.opening import refusal
from fastrelay.config import ClientConfig, Exposure, Public, Target
from fastrelay.errors import (
    AuthError,
    Code,
    ExposeError,
    NameInUseError,
    PinError,
    ProtocolError,
    StartError,
    UnreachableError,
)
from fastrelay.mux.session import Session
from fastrelay.mux.stream import Outlet, Stream
from fastrelay.net.door import VisitorDoor
from fastrelay.net.link import Link
from fastrelay.net.runtime import Runtime
from fastrelay.net.transport import StreamTransport
from fastrelay.roles.client import Client
from fastrelay.roles.visiting import Visiting
from fastrelay.state import ClientState

Accept = Callable[[Stream, Link, wire.Open], None]
"""Takes a stream that a visitor opened: accepts it and joins it, or resets it."""


@dataclass(frozen=True)
class Program(Target):
    """A target that is this program itself."""

    host: str = ""
    port: int = 0

    def __post_init__(self) -> None:
        """There is nothing to check."""

    def __str__(self) -> str:
        return "this program"


_AUTH = (Code.UNAUTHORIZED, Code.DENIED)
_NAME = (Code.NAME_TAKEN, Code.SUPERSEDED)


class Embedded(Client):
    """A Client that fails at once where the relay cannot be reached at first, and raises what a program can tell apart."""

    def __init__(self, config: ClientConfig, state: ClientState) -> None:
        super().__init__(config, state, self._is_reachable, Runtime(config.limits, "this program"))
        self.up: asyncio.Future[None] = self.runtime.loop.create_future()
        """Done when the first tunnel stands, or has the exception that says why none does."""
        self._answers: dict[int, asyncio.Future[None]] = {}
        self._accepts: dict[int, Accept] = {}
        self._dropped: dict[int, Exposure] = {}  # which the relay keeps until the session ends
        self._number = 0  # of the newest service
        self.visiting = Visiting(self.runtime, config.relay.url)
        self._own: WeakSet[StreamTransport] = WeakSet()  # connections that this program has opened

    @property
    def linked(self) -> bool:
        """There is a tunnel at this moment."""
        return self._session is not None

    # --- services ------------------------------------------------------------------------------------------------------

    async def expose(self, exposure: Exposure, accept: Accept | None = None) -> int:
        """Expose a service, by its target or by what accepts its streams. Returns its number, for `where` and `drop`.

        Raises ExposeError, and UnreachableError when the tunnel ends for good before there is an answer.
        """
        number = self._kept(exposure)
        if number:
            del self._dropped[number]
        else:
            self._number = number = self._number + 1
        self._exposures[number] = exposure
        if accept is not None:
            self._accepts[number] = accept
        if number in self._served:
            self._serve(number, exposure)
            return number
        answer = self._answers[number] = self.runtime.loop.create_future()
        if number in self._asked:
            self._asked[number] = exposure
        elif self._session is not None:
            self._ask(self._session, number, exposure)
        try:
            await answer
        except BaseException:
            self.drop(number)
            raise
        finally:
            del self._answers[number]
        return number

    def _kept(self, exposure: Exposure) -> int:
        """The number of a service that was dropped and that the relay keeps for us, if it is the same to visitors; 0 if there is none."""
        for number, old in self._dropped.items():
            known = self._addresses.get(number)
            if exposure.port in (0, old.port, known and known.port) and _to_visitors(exposure) == _to_visitors(old):
                return number
        return 0

    def where(self, number: int) -> Public:
        """What visitors of a service use, as the relay has told last."""
        return self._addresses[number]

    def drop(self, number: int) -> None:
        """Serve it no more: its visitors are refused from now on, those who are here go on."""
        exposure = self._exposures.pop(number, None)
        self._accepts.pop(number, None)
        if exposure is not None and (number in self._served or number in self._asked):
            self._dropped[number] = exposure

    def give_up(self, error: Exception) -> None:
        """The tunnel has ended for good: nobody waits for an answer any more."""
        for answer in (self.up, *self._answers.values()):
            if not answer.done():
                answer.set_exception(error)

    def _is_reachable(self, exposure: Exposure, public: Public) -> None:
        for number, known in self._exposures.items():
            answer = self._answers.get(number)
            if known is exposure and answer is not None and not answer.done():
                answer.set_result(None)

    def _not_exposed(self, answer: wire.Exposed, exposure: Exposure, text: str) -> None:
        self._dropped.pop(answer.service, None)
        waiting = self._answers.get(answer.service)
        if waiting is not None:
            if not waiting.done():
                waiting.set_exception(ExposeError(answer.error or "not-confirmed", text))
        elif answer.service in self._exposures:
            super()._not_exposed(answer, exposure, text)

    # --- reaching ------------------------------------------------------------------------------------------------------

    def open(self, outlet: Outlet, target: str, visitor: str) -> tuple[Stream, Link] | None:
        opened = self.visiting.open(outlet, target, visitor)
        if opened is not None and isinstance(outlet, StreamTransport):
            self._own.add(outlet)
        return opened

    def missed(self, target: str, visitor: str, code: Code) -> None:
        self.visiting.missed(target, visitor, code)

    def pause(self) -> float:
        return self.visiting.pause()

    def why(self, target: str) -> Exception:
        if self._session is None:
            return UnreachableError(f"There is no tunnel to {self.config.relay.url} at this moment.")
        return refusal(Code.SHUTDOWN if self._session.going_away else Code.LIMIT, target)

    def serve(self, door: VisitorDoor) -> None:
        self.visiting.serve(door)

    def leave(self, door: VisitorDoor) -> None:
        self.visiting.leave(door)

    def abort_own(self) -> None:
        """Reset connections that this program has opened and not closed."""
        for transport in list(self._own):
            if not transport.is_closing():
                transport.abort()

    # --- the session ---------------------------------------------------------------------------------------------------

    def on_open(self, stream: Stream, request: wire.Open) -> None:
        link, accept = self._link, self._accepts.get(request.service)
        if request.service in self._dropped:
            stream.reset(Code.NO_SERVICE)
        elif link is None or accept is None or request.service not in self._served:
            super().on_open(stream, request)
        elif self.runtime.full or self.runtime.edges >= self.runtime.budget:
            stream.reset(Code.LIMIT)
            self.runtime.tell_full()
        else:
            accept(stream, link, request)

    def _stands(self, session: Session) -> None:
        self._dropped.clear()
        super()._stands(session)
        assert self._link is not None
        self.visiting.stands(session, self._link)
        if not self.up.done():
            self.up.set_result(None)

    def on_listed(self, answer: wire.Listed) -> None:
        self.visiting.on_listed(answer)

    def on_closed(self, link: Link, error: Exception | None) -> None:
        mine = link is self._link
        super().on_closed(link, error)
        if mine:
            self.visiting.gone(self._explain(error))

    def drain(self) -> None:
        self.visiting.shut()
        super().drain()

    async def close(self) -> None:
        self.visiting.shut()
        await super().close()
        self.visiting.close()

    def _verdict(self) -> None:
        super()._verdict()
        if isinstance(self._fatal, StartError):
            self._fatal = _precise(self._fatal, self._lost)

    async def _wait(self) -> None:
        if not self._once:
            raise UnreachableError(self._explain(self._lost))
        await super()._wait()


def _to_visitors(exposure: Exposure) -> tuple[object, ...]:
    """What of a service visitors can tell, besides its port."""
    return exposure.name, exposure.kind, exposure.visitors, exposure.pool, exposure.login


def _precise(error: StartError, cause: Exception | None) -> StartError:
    """The exception that says which refusal it was."""
    code = cause.code if isinstance(cause, ProtocolError) else None
    if code in _AUTH or isinstance(cause, PinError):
        return AuthError(str(error))
    return NameInUseError(str(error)) if code in _NAME else error

"""The visits of an uplink: streams that this side opens to what other clients serve (protocol.md sections 6.4 and 6.5)."""

from __future__ import annotations

import asyncio

from fastrelay import wire
from fastrelay.config import NAME
from fastrelay.errors import Code, ProtocolError, StartError
from fastrelay.limits import DEFAULTS
from fastrelay.mux.session import Session
from fastrelay.mux.stream import Outlet, Stream
from fastrelay.net.door import VisitorDoor
from fastrelay.net.link import Link
from fastrelay.net.notices import Notices
from fastrelay.net.runtime import Runtime

_COMPLAIN_EVERY = 1.0
_BURST = DEFAULTS.flood_open[0] // 2
_RATE = DEFAULTS.flood_open[1] * 3 // 4
"""Streams at once and a second: well below what ends the session. Beyond that local visitors wait at their doors."""
_MOST = DEFAULTS.flood_open[0] * 7 // 8
"""At once, of those who were let in before the doors were shut as well; beyond that they are reset."""
_MOST_LISTED = 1 << 16


class Visiting:
    """For `relay`, its url. The uplink tells it when a session `stands` and when that is `gone`; `front.opener.Opener` is what local doors see."""

    def __init__(self, runtime: Runtime, relay: str) -> None:
        self.runtime = runtime
        self._relay = relay
        self._session: Session | None = None
        self._link: Link | None = None
        self._doors: list[VisitorDoor] = []
        self._paused: asyncio.TimerHandle | None = None
        self._spent = 0.0  # of _BURST, at `_spent_at`
        self._spent_at = 0.0
        self._listings: list[wire.Listing] = []
        self._listed: asyncio.Future[list[wire.Listing]] | None = None
        self._complaints = Notices(runtime.loop, _COMPLAIN_EVERY)

    def stands(self, session: Session, link: Link) -> None:
        self._session, self._link = session, link
        if self._paused is None:
            self._go_on()

    def gone(self, why: str) -> None:
        self._session = self._link = None
        listed, self._listed = self._listed, None
        if listed is not None and not listed.done():
            listed.set_exception(StartError(why))

    def serve(self, door: VisitorDoor) -> None:
        """Let visitors in at this door from the first session on, as fast as the relay takes streams, until it is left or all is `shut`."""
        self._doors.append(door)
        if self._session is not None and self._paused is None:
            door.open()

    def leave(self, door: VisitorDoor) -> None:
        """Close one door. May be called again."""
        if door in self._doors:
            self._doors.remove(door)
            door.close()

    def shut(self) -> None:
        """Nobody comes in any more."""
        if self._paused is not None:
            self._paused.cancel()
            self._paused = None
        for door in self._doors:
            door.close()
        self._doors.clear()

    def close(self) -> None:
        self.shut()
        self._complaints.close()

    # --- streams -------------------------------------------------------------------------------------------------------

    def open(self, outlet: Outlet, target: str, visitor: str) -> tuple[Stream, Link] | None:
        """A stream to `target` and its tunnel; None while there is no tunnel, or it takes no more."""
        session, link = self._session, self._link
        if session is None or link is None:
            return None
        self._spend(0)
        if self._spent >= _MOST:
            self._complaints.say(
                "crowd", "target.failed", f"Too many visitors came at once: some of {target} were reset.", target=target
            )
            return None
        stream = session.open(outlet, 0, visitor, target)
        if stream is None:
            if not session.going_away:
                self.runtime.reached("streams", f"the relay {self._relay}", session.theirs.max_streams)
            return None
        self._spend(1)
        if self._spent > _BURST and self._paused is None:
            for door in self._doors:
                door.pause()
            self._wait()
        return stream, link

    def pause(self) -> float:
        """Seconds until another stream should be opened; 0 for at once."""
        self._spend(0)
        return max(0.0, (self._spent - _BURST) / _RATE)

    def _spend(self, streams: int) -> None:
        now = self.runtime.loop.time()
        self._spent = max(0.0, self._spent - (now - self._spent_at) * _RATE) + streams
        self._spent_at = now

    def _wait(self) -> None:
        """Until half of the burst is there again: a door that opens lets in many at once."""
        self._paused = self.runtime.loop.call_later((self._spent - _BURST / 2) / _RATE, self._go_on)

    def _go_on(self) -> None:
        self._paused = None
        self._spend(0)
        if self._spent > _BURST:  # some were still on their way in
            self._wait()
            return
        for door in self._doors:
            door.open()

    def missed(self, target: str, visitor: str, code: Code) -> None:
        say_missed(self._complaints, target, visitor, code)

    # --- what there is to reach ----------------------------------------------------------------------------------------

    async def listing(self) -> list[wire.Listing]:
        """What this client may reach, by name. Raises StartError when the tunnel is lost meanwhile."""
        if self._session is None:
            raise StartError(f"There is no tunnel to {self._relay}.")
        if self._listed is None:  # else somebody has just asked
            self._listings = []
            self._listed = self.runtime.loop.create_future()
            self._session.ask()
        return await asyncio.shield(self._listed)

    def on_listed(self, answer: wire.Listed) -> None:
        if self._listed is None:
            raise ProtocolError(Code.PROTOCOL, "LISTED that nobody asked for")
        for one in answer.services:  # they are shown to people
            words = (one.name, one.kind, one.client) if one.client or one.here else (one.name, one.kind)
            if not all(NAME.fullmatch(word) for word in words) or not 0 <= one.since < 1 << 40:
                raise ProtocolError(Code.PROTOCOL, "LISTED names what cannot be")
        self._listings += answer.services
        if len(self._listings) > _MOST_LISTED:
            raise ProtocolError(Code.PROTOCOL, "LISTED has no end")
        if not answer.more:
            listed, self._listed = self._listed, None
            if not listed.done():
                listed.set_result(self._listings)


def say_missed(notices: Notices, target: str, visitor: str, code: Code) -> None:
    """Tell of a visitor that did not reach its target."""
    text = f"{why_missed(target, code)} (visitor {visitor})."
    notices.say(f"{target} {code}", "target.failed", text, target=target, visitor=visitor)


def why_missed(target: str, code: Code) -> str:
    """A sentence without its full stop: why a stream to `target` was refused with this code."""
    client, slash, place = target.partition("/")
    if slash:
        return _why_not_dialled(client, place, code)
    what = {
        Code.NO_SERVICE: f"There is no private service {target!r} that this token reaches; `fastrelay list` shows those that there are",
        Code.AWAY: f"The client that serves {target!r} is not connected now",
        Code.DENIED: f"The relay does not let this client reach {target!r}: its token does not list it, or the service's visitors do not include it",
        Code.REFUSED: f"The target of {target!r} refused the connection; is the service running there",
        Code.UNREACHABLE: f"The target of {target!r} cannot be reached from its client",
        Code.DIAL_TIMEOUT: f"The target of {target!r} did not answer in time",
        Code.LIMIT: f"There is no room for another connection to {target!r}",
        Code.CONNECTION_RESET: f"The tunnel that leads to {target!r} was lost",
    }
    return what.get(code, f"{target!r} cannot be reached: {code.name}")


def _why_not_dialled(client: str, place: str, code: Code) -> str:
    what = {
        Code.NO_SERVICE: f"The relay has no client {client!r}",
        Code.AWAY: f"The client {client!r} is not connected now",
        Code.DENIED: f"The relay refuses {place} through {client!r}: the token of this client does not grant that",
        Code.DIAL_DENIED: f"The client {client!r} refuses to dial {place}: its --allow-dial does not list that",
        Code.DIAL_FORBIDDEN: f"The client {client!r} refuses to dial {place}: its --deny-dial lists that",
        Code.REFUSED: f"{place} refused the connection that {client!r} made; is the service running there",
        Code.UNREACHABLE: f"{place} cannot be reached from {client!r}",
        Code.DIAL_TIMEOUT: f"{place} did not answer {client!r} in time",
        Code.LIMIT: f"There is no room for another connection through {client!r}",
        Code.CONNECTION_RESET: f"The tunnel to {client!r} was lost",
    }
    return what.get(code, f"{place} cannot be reached through {client!r}: {code.name}")

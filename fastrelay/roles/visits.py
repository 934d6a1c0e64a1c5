"""A client's visit to a service of another client, or to a place behind it: two streams of two tunnels, joined in the relay (protocol.md sections
6.4, 6.6 and 9.5).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from fastrelay import log
from fastrelay.errors import Code
from fastrelay.mux.stream import NOTHING, Stream
from fastrelay.net.runtime import Runtime
from fastrelay.net.splice import splice
from fastrelay.roles.places import Distant
from fastrelay.roles.pools import Asking, Member, Pool
from fastrelay.roles.services import Service

if TYPE_CHECKING:
    from fastrelay.roles.tunnel import Tunnel

_NO_FILE: Final = -1


class Visit:
    """From OPEN to the last byte. It takes the room of one of the relay's own connections, and none of its descriptors.

    `stream` is what `caller` has opened, `there` what the relay opens to the `goal`.
    """

    __slots__ = (
        "_caller",
        "_place",
        "_runtime",
        "_serving",
        "_since",
        "_stream",
        "_there",
        "_timer",
        "_title",
        "who",
    )

    @classmethod
    def begin(cls, runtime: Runtime, caller: Tunnel, stream: Stream, goal: Service | Distant) -> bool:
        """Whether there was room for it."""
        if not _room(runtime):
            return False
        there = goal.open(NOTHING, caller.link.peer)
        if there is None:
            return False
        visit = cls(runtime, caller, stream, goal, there)
        splice(runtime, stream, caller.link, there, goal.tunnel.link, visit)
        return True

    def __init__(
        self, runtime: Runtime, caller: Tunnel, stream: Stream, goal: Service | Distant, there: Stream
    ) -> None:
        self._runtime = runtime
        self._caller = caller
        self._serving = goal.tunnel
        self._stream = stream
        self._there = there
        self._since = runtime.loop.time()
        self._timer = runtime.loop.call_later(runtime.limits.answer_time, self._late)
        runtime.edge_made(_NO_FILE)
        if log.audited():
            visitor = caller.link.peer
            self.who = goal.who(visitor)
            self._place = goal.name if isinstance(goal, Distant) else None
            self._title = f"visitor {visitor} of {goal.name} of {goal.tunnel.name}"
            log.note(
                "visitor.opened",
                f"Accepted {self._title}.",
                **self.who,
                target=self._place,
                stream=there.id,
                by=caller.label,
                by_stream=stream.id,
                token=caller.key.label,
            )

    def _late(self) -> None:
        """The client that serves it has not answered."""
        self._runtime.reached("answer-time", self._serving.name)
        self._there.abort(Code.DIAL_TIMEOUT)

    def on_accept(self) -> None:
        self._timer.cancel()

    def on_over(self, first: Stream | None, code: Code | None) -> None:
        self._timer.cancel()
        self._runtime.edge_gone()
        if not log.audited():
            return
        stream, there = self._stream, self._there
        self._caller.totals.add(stream.received, stream.sent)
        self._serving.totals.add(there.sent, there.received)
        if first is None:
            cause = log.CAUSES[Code.NO_ERROR]
        elif code is None:
            cause = log.cause((self._caller if first is stream else self._serving).link.error)
        elif code is Code.CONNECTION_RESET:
            cause = "visitor-reset" if first is stream else "target-reset"
        else:
            cause = log.CAUSES[code or Code.CANCEL]
        log.note(
            "visitor.closed",
            f"Closed {self._title}: {cause}.",
            **self.who,
            target=self._place,
            stream=there.id,
            by=self._caller.label,
            by_stream=stream.id,
            token=self._caller.key.label,
            bytes_in=there.sent,
            bytes_out=there.received,
            seconds=round(self._runtime.loop.time() - self._since, 6),
            cause=cause,
        )


class PoolVisit:
    """A visit to a pool until a client has accepted it: the outlet of what `caller` has opened. What it sends early is kept meanwhile."""

    __slots__ = ("_asking", "_caller", "_early", "_fin", "_pool", "_runtime", "_stream")

    @classmethod
    def begin(cls, runtime: Runtime, caller: Tunnel, stream: Stream, member: Member) -> bool:
        """Whether there was room for it. `member` is asked first."""
        if not _room(runtime):
            return False
        stream.attach(visit := cls(runtime, caller, stream, member.pool))
        visit._asking.ask(member)
        return True

    def __init__(self, runtime: Runtime, caller: Tunnel, stream: Stream, pool: Pool) -> None:
        self._runtime = runtime
        self._caller = caller
        self._stream = stream
        self._pool = pool
        self._early = bytearray()
        self._fin = False
        self._asking = Asking(runtime, pool, caller.link.peer, self._met, self._not_met)
        runtime.edge_made(_NO_FILE)

    def _met(self, member: Member, there: Stream, stopped: bool) -> None:
        stream, early = self._stream, self._early
        visit = Visit(self._runtime, self._caller, stream, member, there)
        self._runtime.edge_gone()
        splice(self._runtime, stream, self._caller.link, there, member.tunnel.link, visit)
        there.outlet.on_accept()
        if stopped:
            there.outlet.on_stop()
        if early:
            stream.queued = 0
            stream.outlet.deliver(memoryview(early))
            stream.drained()
        if self._fin:
            stream.outlet.on_fin()

    def _not_met(self, code: Code, cause: str) -> None:
        self._runtime.edge_gone()
        self._stream.reset(code)
        caller = self._caller
        log.note(
            "visitor.refused",
            f"Refused visitor {caller.link.peer} of {self._pool.title}: {cause}.",
            service=self._pool.name,
            visitor=caller.link.peer,
            by=caller.label,
            by_stream=self._stream.id,
            token=caller.key.label,
            cause=cause,
        )

    def _give_up(self) -> None:
        self._asking.cancel()
        self._runtime.edge_gone()

    # --- from the stream -----------------------------------------------------------------------------------------------

    def deliver(self, piece: memoryview) -> None:
        self._early += piece
        self._stream.queued = len(self._early)
        if not self._stream.cover(len(self._early)):
            self._give_up()
            self._stream.reset(Code.LIMIT)

    def on_fin(self) -> None:
        self._fin = True

    def on_reset(self, code: Code) -> None:
        self._give_up()
        self._stream.detach()

    def on_lost(self) -> None:
        self._give_up()

    def on_accept(self) -> None:
        """Cannot come: it is this side that accepts."""

    def on_stop(self) -> None:
        """Cannot come before ACCEPT."""

    def on_room(self) -> None:
        """There is nothing to send yet."""


def _room(runtime: Runtime) -> bool:
    """Whether there is room for another visit; if not, that is told."""
    if runtime.edges + runtime.coming < runtime.budget:
        return True
    runtime.tell_full()
    return False

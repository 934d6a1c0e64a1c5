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
        "_goal",
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
        if runtime.edges + runtime.coming >= runtime.budget:
            runtime.tell_full()
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
        self._goal: Service | Distant | None = goal  # until it has accepted
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
        self._goal = None

    def on_over(self, first: Stream | None, code: Code | None) -> None:
        self._timer.cancel()
        if self._goal is not None and first is self._there:
            self._goal.failed()
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

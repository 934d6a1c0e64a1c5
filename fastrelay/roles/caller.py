"""An uplink that serves nothing: through it local programs visit services of other clients (protocol.md section 6.4)."""

from __future__ import annotations

from collections.abc import Callable

from fastrelay import wire
from fastrelay.config import ClientConfig
from fastrelay.errors import Code, ProtocolError
from fastrelay.mux.session import Session
from fastrelay.mux.stream import Stream
from fastrelay.net.link import Link
from fastrelay.net.runtime import Runtime
from fastrelay.roles.uplink import Uplink
from fastrelay.roles.visiting import Visiting
from fastrelay.state import ClientState


class Caller(Uplink):
    """An uplink for visitors: see there for its life. `visiting` is what local doors see of it.

    `stands()` is called whenever a session has begun.
    """

    def __init__(
        self,
        config: ClientConfig,
        state: ClientState,
        stands: Callable[[], None],
        runtime: Runtime | None = None,
        *,
        again: bool = True,
    ) -> None:
        super().__init__(config, state, runtime, again=again)
        self._on_stands = stands
        self.visiting = Visiting(self.runtime, config.relay.url)

    def drain(self) -> None:
        self.visiting.shut()
        super().drain()

    async def close(self) -> None:
        self.visiting.shut()
        await super().close()
        self.visiting.close()

    # --- the session ---------------------------------------------------------------------------------------------------

    def _stands(self, session: Session) -> None:
        assert self._link is not None
        self.visiting.stands(session, self._link)
        self._on_stands()

    def on_open(self, stream: Stream, request: wire.Open) -> None:
        stream.reset(Code.NO_SERVICE)

    def on_exposed(self, answer: wire.Exposed) -> None:
        raise ProtocolError(Code.PROTOCOL, "EXPOSED that nobody asked for")

    def on_listed(self, answer: wire.Listed) -> None:
        self.visiting.on_listed(answer)

    def on_closed(self, link: Link, error: Exception | None) -> None:
        mine = link is self._link
        super().on_closed(link, error)
        if mine:
            self.visiting.gone(self._explain(error))

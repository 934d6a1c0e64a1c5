"""Slow heads are bounded, and keep nobody out."""

from __future__ import annotations

import asyncio
import dataclasses

from fastrelay import wire
from fastrelay.front.http.lobby import Lobby
from fastrelay.front.http.messages import Request
from fastrelay.front.http.visitor import HttpVisitor
from fastrelay.front.http.way import Way
from fastrelay.limits import DEFAULTS
from tests.conftest import Run
from tests.front.http.test_visitor import GET, OK, Service
from tests.support.peers import End
from tests.support.tunnel import Bench, Local, tcp_pair, turns


def test_slow_heads_go_for_newcomers(run: Run) -> None:
    limits = dataclasses.replace(DEFAULTS, max_greetings=20)

    async def main() -> None:
        async with Bench(theirs=wire.Settings(early=65_536), limits=limits) as bench:
            service = Service(bench)
            lobby = Lobby(bench.runtime)

            def route(request: Request, visitor: str) -> Way:
                return Way(service, request)

            async def visitor() -> Local:
                outside, inside = tcp_pair()
                edge = HttpVisitor(bench.runtime, route, "http", lobby)
                await bench.loop.connect_accepted_socket(lambda: edge, inside)
                local = Local(outside)
                bench.locals.append(local)
                return local

            good = await visitor()
            await good.send(GET % 1)
            stream = await service.asked(b"GET /1 ")
            await service.answer(stream, OK)
            slow = [await visitor() for _ in range(50)]
            for local in slow[-20:]:
                await local.send(b"GET / HTT")
            await turns()
            for local in slow[:30]:
                assert await local.to_end() == (b"", End.RESET)
            assert all(local.quiet() for local in slow[30:])
            # Whoever has asked something is none of them, and a newcomer gets in.
            assert await good.read(len(OK)) == OK
            newcomer = await visitor()
            await newcomer.send(GET % 2)
            await service.answer(await service.asked(b"GET /2 "), OK)
            assert await newcomer.read(len(OK)) == OK
            assert sum(local.quiet() for local in slow) == 19

            lobby.retire()
            assert (await good.to_end(), await newcomer.to_end()) == ((b"", End.EOF), (b"", End.EOF))
            async with asyncio.timeout(5):
                for local in slow[31:]:
                    await local.to_end()

    run(main())

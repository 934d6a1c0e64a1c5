"""The relay and the client under load, and what happens to them: tunnels are cut from outside, relays stop in order or are killed."""

from __future__ import annotations

import asyncio
import random
import signal
import subprocess
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from fastrelay.wire import DRAIN_TIME
from tests.soak.figures import Figures, sample
from tests.soak.load import Load
from tests.support.processes import Relay, Server, Way

SAMPLE_EVERY = 5.0
FIRST_PART = 0.4
"""Of the time: relays are restarted in it, so that one relay and one client live through the rest, which is judged."""


class Soak:
    """`kills` cut tunnels over the whole time, `restarts` of the relay in the first part of it and `warm_up` kills in a row at its end,
    `rests` in which nobody is connected.
    """

    def __init__(
        self,
        home: Path,
        way: Way,
        *,
        seconds: float,
        rate: float,
        kills: int,
        restarts: int,
        warm_up: int = 0,
        rests: int,
        seed: int,
        ss: str,
        say: Callable[[str], None],
    ) -> None:
        self._home, self._way, self._seconds, self._rate, self._seed, self._ss = home, way, seconds, rate, seed, ss
        self._say = say
        self._random = random.Random(seed)
        self._rests = rests
        self._kills, self._restarts, self._warm_up_kills = kills, restarts, warm_up
        self._back: list[float] = []
        self._server = Figures("relay")
        self._client = Figures("client")

    async def run(self) -> list[str]:
        """What was wrong, as sentences."""
        self._load = load = Load(self._seed, self._rate)
        try:
            self._relay = await asyncio.to_thread(Relay, self._home, self._way, load.listener.getsockname())
            with self._relay:
                await self._live()
        finally:
            await load.close()
        return self._report()

    async def _live(self) -> None:
        load, dice = self._load, self._random
        load.address = self._relay.addresses[0]
        self._start = time.monotonic()
        sampling = asyncio.create_task(self._sample())
        restarts = iter(sorted(dice.uniform(0, FIRST_PART) for _ in range(self._restarts)))
        plan: list[tuple[float, Callable[[], Coroutine[Any, Any, None]]]] = [
            *((at * self._seconds, self._restart) for at in restarts),
            (FIRST_PART * self._seconds, self._warm_up),
            *(((turn + dice.random()) / self._kills * self._seconds, self._kill) for turn in range(self._kills)),
            *(((turn + 1) / self._rests * self._seconds, self._rest) for turn in range(self._rests)),
        ]
        try:
            for at, happen in sorted(plan, key=lambda one: one[0]):
                await load.flow(asyncio.get_running_loop().time() + at - self._now())
                await happen()
        finally:
            sampling.cancel()
            await asyncio.gather(sampling, return_exceptions=True)

    # --- what happens --------------------------------------------------------------------------------------------------

    async def _kill(self) -> None:
        port = self._relay.server.address[1]
        command = [self._ss, "-K", "-t", "-n", "dport", "=", f":{port}"]
        await self._disorder(lambda: subprocess.run(command, check=True, capture_output=True, timeout=30))

    async def _warm_up(self) -> None:
        """The heap takes some hundred KiB for the first 200 tunnels that are lost, and then no more: that is not what is looked for."""
        for _ in range(self._warm_up_kills):
            await self._kill()

    async def _restart(self) -> None:
        old = self._relay.server
        died = self._random.random() < 0.5

        def restart() -> None:
            if died:
                old.kill()
            else:
                old.signal(signal.SIGTERM)
                old.wait(2 * DRAIN_TIME)
            old.__exit__(None)
            host, port = old.address
            self._relay.server = Server(old.state, self._way, bind=f"{host}:{port}", ports=old.ports)
            self._server.anew()

        await self._disorder(restart)

    async def _disorder(self, work: Callable[[], object]) -> None:
        load = self._load
        load.in_disorder = True
        load.disorders += 1
        for _ in range(5):
            load.start()
        await asyncio.to_thread(work)
        self._back.append(await load.again())
        load.in_disorder = False

    async def _rest(self) -> None:
        """Nobody is connected; what both hold then is noted as soon as it no longer changes."""
        await self._load.quiet()
        relay = self._relay
        before = (0, 0)
        for _ in range(20):
            now = (relay.server.files(), relay.client.files())
            if now == before:
                break
            before = now
            await asyncio.sleep(0.5)
        for figures, process in ((self._server, relay.server), (self._client, relay.client)):
            figures.rests.append(sample(process, self._now(), self._load.done))
        held = ", ".join(
            f"{one.name} {one.rests[-1].rss:.0f} KiB, {one.rests[-1].files} files"
            for one in (self._server, self._client)
        )
        self._say(f"{self._now():6.0f} s  {self._load.done} connections; {held}")

    async def _sample(self) -> None:
        every = min(SAMPLE_EVERY, self._seconds / 60)
        while True:
            await asyncio.sleep(every)
            if self._load.in_disorder:
                continue
            relay = self._relay
            for figures, process in ((self._server, relay.server), (self._client, relay.client)):
                figures.samples.append(sample(process, self._now(), self._load.done))

    def _now(self) -> float:
        return time.monotonic() - self._start

    # --- what came of it -----------------------------------------------------------------------------------------------

    def _report(self) -> list[str]:
        load = self._load
        verdicts = [figures.judge(self._seconds / 2) for figures in (self._server, self._client)]
        faults = [fault for verdict in verdicts for fault in verdict.faults] + load.failures
        back = sorted(self._back)
        ends = ", ".join(f"{count} {kind}" for kind, count in sorted(load.ends.items()))
        self._say(
            f"{load.done} connections, {load.bytes / 1e9:.2f} GB checked, {len(load.failures)} failures; {load.lost} ends were excused by "
            f"{self._kills + self._warm_up_kills} cut tunnels and {self._restarts} restarts of the relay"
        )
        self._say(f"ends as planned: {ends}")
        if back:
            self._say(f"works again after {back[len(back) // 2]:.2f} s (median), {back[-1]:.2f} s (longest)")
        for verdict in verdicts:
            self._say(verdict.text)
        if len(load.ends) < 5:
            faults.append("Not every kind of connection was there.")
        return faults

"""The watch beside the loop: what it tells about real sockets while nobody reads them."""

from __future__ import annotations

import asyncio
import socket

from fastrelay.net.watch import Watch
from tests.conftest import Run
from tests.support.tunnel import Local, tcp_pair, turns, until


class Ear:
    def __init__(self) -> None:
        self.heard: list[str] = []

    def on_writable(self) -> None:
        self.heard.append("writable")

    def on_hang_up(self, reset: bool, both: bool) -> None:
        self.heard.append(f"{'reset' if reset else ''}{'both' if both else ''}")


def test_what_is_so_already_is_told_once(run: Run) -> None:
    async def main() -> None:
        watch = Watch(asyncio.get_running_loop())
        near, far = tcp_pair()
        ear = Ear()
        watch.add(near.fileno(), ear)
        watch.add(near.fileno(), ear)
        await turns(10)
        assert ear.heard == ["writable"]
        watch.remove(near.fileno())
        watch.remove(near.fileno())
        near.close()
        far.close()
        watch.close()

    run(main())


def test_room_to_write_is_told_after_the_peer_has_read(run: Run) -> None:
    async def main() -> None:
        watch = Watch(asyncio.get_running_loop())
        near, far = tcp_pair()
        ear = Ear()
        sent = 0
        try:
            while True:
                sent += near.send(bytes(100_000))
        except BlockingIOError:
            pass
        watch.add(near.fileno(), ear)
        await turns(10)
        assert ear.heard == []
        await Local(far).read(sent)
        await until(lambda: "writable" in ear.heard, "there is room again")
        watch.remove(near.fileno())
        near.close()
        far.close()
        watch.close()

    run(main())


def test_ends_and_resets_of_a_socket_that_nobody_reads(run: Run) -> None:
    async def main() -> None:
        watch = Watch(asyncio.get_running_loop())
        for end, told in (("eof", None), ("reset", "resetboth")):
            near, far = tcp_pair()
            near.setblocking(False)
            ear = Ear()
            watch.add(near.fileno(), ear)
            await until(lambda ear=ear: ear.heard, "it is writable")  # type: ignore[misc]
            far.send(b"unread")
            outside = Local(far)
            getattr(outside, end)()
            if told is None:
                await turns(10)
                assert set(ear.heard) == {"writable"}, "an end of one direction is not a failure"
            else:
                await until(lambda ear=ear, told=told: told in ear.heard, told)  # type: ignore[misc]
            assert near.recv(10) == b"unread"
            watch.remove(near.fileno())
            near.close()
            far.close()
        watch.close()

    run(main())


def test_a_unix_socket_whose_peer_closed_has_not_failed(run: Run) -> None:
    async def main() -> None:
        watch = Watch(asyncio.get_running_loop())
        near, far = socket.socketpair()
        near.setblocking(False)
        ear = Ear()
        watch.add(near.fileno(), ear)
        far.send(b"unread")
        far.close()
        await until(lambda: "both" in ear.heard, "it hung up")
        assert not [heard for heard in ear.heard if "reset" in heard]
        watch.remove(near.fileno())
        near.close()
        watch.close()

    run(main())


def test_who_leaves_while_others_are_told_is_told_nothing(run: Run) -> None:
    async def main() -> None:
        watch = Watch(asyncio.get_running_loop())
        pairs = [tcp_pair() for _ in range(3)]
        heard: list[int] = []

        class Leaver(Ear):
            def __init__(self, number: int) -> None:
                super().__init__()
                self.number = number

            def on_writable(self) -> None:
                heard.append(self.number)
                for near, _ in pairs:
                    watch.remove(near.fileno())

        for number, (near, _) in enumerate(pairs):
            watch.add(near.fileno(), Leaver(number))
        await turns(10)
        assert len(heard) == 1
        for near, far in pairs:
            near.close()
            far.close()
        watch.close()

    run(main())


def test_connections_may_end_after_the_watch(run: Run) -> None:
    async def main() -> None:
        watch = Watch(asyncio.get_running_loop())
        near, far = tcp_pair()
        watch.add(near.fileno(), Ear())
        watch.close()
        watch.remove(near.fileno())
        near.close()
        far.close()

    run(main())

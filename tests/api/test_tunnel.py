"""`connect`: what a program serves through a tunnel, how it is told of errors, and how everything ends."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path
from typing import Any

import pytest

import fastrelay
from fastrelay.api import tunnel as tunnel_module
from fastrelay.auth import Token
from fastrelay.errors import (
    AuthError,
    ExposeError,
    FastrelayError,
    NameInUseError,
    StartError,
    UnreachableError,
    UsageError,
)
from tests.api.programs import echo, joined, local, relay, tunnel, visit
from tests.conftest import Run
from tests.support.payload import Keystream
from tests.support.peers import free_port
from tests.support.tunnel import until


def test_the_names_are_loaded_when_they_are_asked_for() -> None:
    assert fastrelay.connect is tunnel_module.connect and fastrelay.UnreachableError is UnreachableError
    assert issubclass(fastrelay.DialTimeoutError, TimeoutError)
    for name in ("conect", "NoSuchError"):
        with pytest.raises(AttributeError, match=name):
            getattr(fastrelay, name)


def test_a_local_service_is_reached(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        async with joined(tmp_path) as (server, home), local(echo) as port:
            assert home.is_up and home.name == "home" and home.relay == server.url
            async with home.expose(port, name="web") as service:
                assert (service.name, service.host) == ("web", "127.0.0.1")
                assert service.url == f"tcp://127.0.0.1:{service.port}" and 20_000 <= service.port <= 20_999
                assert await visit(service.host, service.port, b"hello") == b"hello"
            other = await home.expose(f"other=127.0.0.1:{port}")
            assert await visit(other.host, other.port, b"again") == b"again"

    run(main())


@pytest.mark.parametrize(("proxied", "path"), [(False, ""), (True, ""), (True, "/tunnels")])
def test_inside_a_websocket(run: Run, tmp_path: Path, proxied: bool, path: str) -> None:
    options: dict[str, Any] = {"websocket_path": path} if path else {}

    async def main() -> None:
        state = tmp_path / "relay"
        server = fastrelay.Server(bind="127.0.0.1:0", state=state, behind_proxy=proxied, drain=0, **options)
        async with server:
            assert server.url == f"{'ws' if proxied else 'tls'}://127.0.0.1:{server.port}{path}"
            url = server.url.replace("tls://", "wss://")
            async with (
                fastrelay.connect(url, token=server.token, name="home", state=tmp_path / "client", drain=0) as home,
                home.listen("jobs", echo, kind="tcp") as service,
            ):
                assert await visit(service.host, service.port, b"hello" * 100_000) == b"hello" * 100_000

    run(main())


def test_a_service_that_is_closed_refuses_and_lets_who_is_here_go_on(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        async with joined(tmp_path) as (_, home):
            service = await home.listen("jobs", echo, kind="tcp")
            reader, writer = await asyncio.open_connection(service.host, service.port)
            writer.write(b"one")
            assert await reader.readexactly(3) == b"one"
            service.close()
            service.close()
            with pytest.raises(ConnectionError):
                await visit(service.host, service.port, b"late")
            writer.write(b"two")
            writer.write_eof()
            assert await reader.read() == b"two"
            writer.close()

    run(main())


def test_visitors_come_as_streams_without_a_local_port(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        seen: list[Any] = []

        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            seen.extend(map(writer.get_extra_info, ("service", "peername", "visitor")))
            await echo(reader, writer)

        async with joined(tmp_path) as (_, home), home.listen("jobs", answer, kind="tcp") as service:
            sent = Keystream("visitor").take(3_000_000)
            assert await visit(service.host, service.port, sent) == sent
            name, (host, port), visitor = seen
            assert (name, host, visitor) == ("jobs", "127.0.0.1", f"127.0.0.1:{port}")

    run(main())


def test_visitors_come_to_protocols(run: Run, tmp_path: Path) -> None:
    class Upper(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            assert isinstance(transport, asyncio.Transport)
            self.transport = transport

        def data_received(self, data: bytes) -> None:
            self.transport.write(data.upper())

    async def main() -> None:
        async with joined(tmp_path) as (_, home):
            service = await home.listen_protocol("upper", Upper, kind="tcp")
            assert await visit(service.host, service.port, b"hello") == b"HELLO"

    run(main())


def test_a_factory_or_handler_that_fails_resets_its_visitor_only(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        told: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))

        async def fail(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b"half of")
            raise ValueError("a fault of the program")

        def refuse() -> asyncio.Protocol:
            raise ValueError("no protocol")

        async with joined(tmp_path) as (_, home):
            for service in (
                await home.listen("handler", fail, kind="tcp"),
                await home.listen_protocol("factory", refuse, kind="tcp"),
            ):
                with pytest.raises(ConnectionResetError):
                    await visit(service.host, service.port, b"hello")
            fine = await home.listen("fine", echo, kind="tcp")
            assert await visit(fine.host, fine.port, b"hello") == b"hello"
        assert [str(context["exception"]) for context in told] == ["a fault of the program", "no protocol"]

    run(main())


def test_what_is_exposed_again_gets_its_name_and_port_back(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        async def deaf(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.close()

        async with joined(tmp_path) as (_, home), local(echo) as port:
            first = await home.listen("web", deaf, kind="tcp")
            assert await visit(first.host, first.port, b"hello") == b""
            first.close()
            with pytest.raises(ConnectionResetError):
                await visit(first.host, first.port, b"hello")
            async with home.expose(port, name="web") as second:
                assert second.port == first.port
                assert await visit(second.host, second.port, b"hello") == b"hello"
            async with home.expose(port, name="web", port=first.port) as third:
                assert await visit(third.host, third.port, b"hello") == b"hello"
            with pytest.raises(ExposeError) as raised:  # it would be another one to visitors
                await home.listen("web", echo)
            assert raised.value.error == "name-taken"

    run(main())


def test_who_gives_up_waiting_may_expose_it_again_at_once(run: Run, tmp_path: Path) -> None:
    """The relay has been asked, and its answer is for the second one."""

    async def main() -> None:
        async with joined(tmp_path) as (_, home), local(echo) as port:
            for again in range(3):
                waiting = asyncio.ensure_future(home.expose(port, name="web")._make())
                await asyncio.sleep(0)
                waiting.cancel()
                await asyncio.wait({waiting})
                if not waiting.cancelled():  # there was nothing to wait for
                    waiting.result().close()
                await asyncio.sleep(0.02 * again)
            service = await home.expose(port, name="web")
            assert await visit(service.host, service.port, b"hello") == b"hello"

    run(main())


def test_a_pool(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        async with relay(tmp_path) as server, local(echo) as port:
            async with tunnel(server, tmp_path, "one") as one, tunnel(server, tmp_path, "two") as two:
                services = [await each.expose(port, name="web", pool=True) for each in (one, two)]
                assert services[0].port == services[1].port
                await one.aclose()
                assert await visit(services[1].host, services[1].port, b"hello") == b"hello"

    run(main())


def test_whose_a_connection_is(run: Run, tmp_path: Path) -> None:
    """A load balancer's header is believed, and told to a target that asks for one, or to a program."""

    async def through(service: Any) -> bytes:
        reader, writer = await asyncio.open_connection(service.host, service.port, local_addr=("127.0.0.9", 0))
        writer.write(b"PROXY TCP4 192.0.2.9 198.51.100.1 51528 443\r\nhello")
        writer.write_eof()
        try:
            return await reader.read()
        finally:
            writer.close()
            await writer.wait_closed()

    async def who(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(repr(writer.get_extra_info("peername")).encode())
        writer.write_eof()
        await reader.read()
        writer.close()

    async def main() -> None:
        async with relay(tmp_path, proxy_protocol=["127.0.0.9"]) as server, local(echo) as port:
            async with tunnel(server, tmp_path) as home:
                told = await home.expose(port, name="web", proxy_protocol="v1")
                answer = await through(told)
                assert answer == f"PROXY TCP4 192.0.2.9 127.0.0.1 51528 {port}\r\nhello".encode()
                assert await through(await home.listen("me", who, kind="tcp")) == b"('192.0.2.9', 51528)"
                with pytest.raises(UsageError, match="write v1 or v2"):
                    await home.expose(port, proxy_protocol="v3")

    run(main())


# --- errors --------------------------------------------------------------------------------------------------------------


def test_a_relay_that_is_not_there(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        token = Token("k3yID_-0", bytes(32), ()).text()
        with pytest.raises(UnreachableError, match="is the relay running there") as raised:
            await fastrelay.connect(f"tcp://127.0.0.1:{free_port()}", token=token, name="home", state=tmp_path)
        assert raised.type.__bases__ == (FastrelayError, ConnectionError)

    run(main())


def test_who_may_not_come(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        async with relay(tmp_path) as server:
            wrong = Token("k3yID_-0", bytes(32), ()).text()
            with pytest.raises(AuthError):
                await tunnel(server, tmp_path, token=wrong)
            with pytest.raises(UsageError, match="token"):
                await tunnel(server, tmp_path, token="not a token")
            async with tunnel(server, tmp_path):
                with pytest.raises(StartError, match="already runs here"):
                    await tunnel(server, tmp_path)
                with pytest.raises(NameInUseError):
                    await tunnel(server, tmp_path / "elsewhere")
                async with tunnel(server, tmp_path, "another"):
                    pass
            async with tunnel(server, tmp_path):
                pass

    run(main())


def test_a_service_that_is_refused_leaves_the_tunnel_as_it_is(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        async with joined(tmp_path) as (_, home):
            service = await home.listen("jobs", echo, kind="tcp")
            with pytest.raises(ExposeError) as raised:
                await home.listen("jobs", echo, kind="tcp")
            assert raised.value.error == "name-taken"
            with pytest.raises(ExposeError) as raised:
                await home.expose(22, port=service.port)
            assert raised.value.error == "port-taken"
            for wrong in ("no spec: at all", 70_000):
                with pytest.raises(UsageError):
                    await home.expose(wrong)
            with pytest.raises(UsageError, match="visitors"):
                await home.listen("listed", echo, visitors=["everybody"])
            assert await visit(service.host, service.port, b"hello") == b"hello"

    run(main())


def test_a_tunnel_without_a_name_serves_nothing(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        async with relay(tmp_path) as server, tunnel(server, tmp_path, "") as visitor:
            with pytest.raises(UsageError, match="no name"):
                await visitor.expose(22)
            assert visitor.is_up

    run(main())


def test_who_may_visit(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        async with joined(tmp_path) as (_, home):
            nobody = await home.listen("nobody", echo, kind="tcp", visitors=["192.0.2.0/24"])
            with pytest.raises(ConnectionResetError):
                await visit(nobody.host, nobody.port, b"hello")
            us = await home.listen("us", echo, kind="tcp", visitors=["127.0.0.0/8"])
            assert await visit(us.host, us.port, b"hello") == b"hello"

    run(main())


# --- ends ----------------------------------------------------------------------------------------------------------------


def test_what_was_closed_before_the_end_has_been_sent(run: Run, tmp_path: Path) -> None:
    """The block ends while the last bytes are still on their way: nobody loses them."""

    async def main() -> None:
        sent = Keystream("last").take(2_000_000)

        async def give(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(sent)
            writer.close()
            given.set()

        given = asyncio.Event()
        async with relay(tmp_path) as server:
            async with tunnel(server, tmp_path, drain=5) as home:
                service = await home.listen("jobs", give, kind="tcp")
                reader, writer = await asyncio.open_connection(service.host, service.port)
                await given.wait()
                reading = asyncio.ensure_future(reader.read())
            assert await reading == sent
            writer.close()

    run(main())


@pytest.mark.parametrize("fails", [False, True])
def test_what_is_open_at_the_end_is_reset(run: Run, tmp_path: Path, fails: bool) -> None:
    async def main() -> None:
        ended: list[BaseException] = []

        async def wait(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b"!")
            try:
                await reader.read()
            except BaseException as error:
                ended.append(error)
                raise

        async with relay(tmp_path) as server:
            try:
                async with tunnel(server, tmp_path, drain=5 if fails else 0.05) as home:
                    service = await home.listen("jobs", wait, kind="tcp")
                    reader, writer = await asyncio.open_connection(service.host, service.port)
                    assert await reader.readexactly(1) == b"!"
                    if fails:
                        raise KeyError
            except KeyError:
                assert fails
            with pytest.raises(ConnectionResetError):
                await reader.read()
            writer.close()
            assert len(ended) == 1 and isinstance(ended[0], (ConnectionResetError, asyncio.CancelledError))
            await home.wait_closed()
            with pytest.raises(UnreachableError):
                await home.listen("late", echo)
            await home.aclose()

    run(main())


def test_a_tunnel_that_is_lost_comes_back_with_what_it_serves(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        async with joined(tmp_path) as (_, home):
            service = await home.listen("jobs", echo, kind="tcp")
            port = service.port
            reader, writer = await asyncio.open_connection(service.host, port)
            writer.write(b"hello")
            assert await reader.readexactly(5) == b"hello"
            link = home._client._link
            assert link is not None
            link.abort(ConnectionAbortedError("cut"))
            with pytest.raises(ConnectionResetError):
                await reader.read()
            writer.close()
            await asyncio.sleep(0.02)
            home._client._retry.set()  # it need not wait for its turn
            await until(lambda: home.is_up, "the tunnel is back")
            await until(lambda: home._client._served, "the service is back")
            assert service.port == port
            assert await visit(service.host, port, b"again") == b"again"

    run(main())


def test_a_tunnel_that_another_one_takes_over_has_ended(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        async with relay(tmp_path) as server:
            async with tunnel(server, tmp_path) as home:
                home._client._state.close()  # as if it were on another machine with a copy of the directory
                async with tunnel(server, tmp_path):
                    with pytest.raises(NameInUseError):
                        await home.wait_closed()
                    assert not home.is_up

    run(main())


def test_several_in_one_process(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        async with relay(tmp_path / "a") as one, relay(tmp_path / "b") as two:
            async with tunnel(one, tmp_path) as first, tunnel(two, tmp_path) as second:
                services = [await each.listen("jobs", echo, kind="tcp") for each in (first, second)]
                for service in services:
                    assert await visit(service.host, service.port, b"hello") == b"hello"

    run(main())


def test_nothing_of_the_process_is_changed(run: Run, tmp_path: Path) -> None:
    import logging
    import resource
    import signal

    async def main() -> None:
        before = (
            resource.getrlimit(resource.RLIMIT_NOFILE),
            [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)],
            list(logging.getLogger().handlers),
            logging.getLogger("fastrelay").level,
            socket.getdefaulttimeout(),
        )
        soft = before[0][0]
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft // 2, before[0][1]))
        try:
            async with joined(tmp_path):
                assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == soft // 2
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, before[0])
        assert before[1:] == (
            [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)],
            list(logging.getLogger().handlers),
            logging.getLogger("fastrelay").level,
            socket.getdefaulttimeout(),
        )

    run(main())

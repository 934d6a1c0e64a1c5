"""ASGI apps on the streams of visitors: no port of their own, the visitor's own address, and an end in order."""

from __future__ import annotations

import asyncio
import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.client import connect as websocket

from fastrelay import asgi
from fastrelay.errors import StartError
from tests.api.programs import joined, relay, tunnel
from tests.api.test_cancellation import at_every_await
from tests.conftest import Run
from tests.support.tunnel import until

REQUEST = (
    b"%s / HTTP/1.1\r\nHost: web\r\nX-Forwarded-For: 192.0.2.1\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s"
)


class App:
    """Says who asked, and gives back what it was sent."""

    def __init__(self) -> None:
        self.life: list[str] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            for event in ("startup", "shutdown"):
                assert (await receive())["type"] == f"lifespan.{event}"
                self.life.append(event)
                await send({"type": f"lifespan.{event}.complete"})
        elif scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.accept"})
            while (said := await receive())["type"] == "websocket.receive":
                await send({"type": "websocket.send", "text": said["text"].upper()})
        else:
            body, more = b"", True
            while more:
                part = await receive()
                body += part["body"]
                more = part["more_body"]
            answer = json.dumps({"client": scope["client"], "size": len(body)}).encode()
            headers = [(b"content-length", b"%d" % len(answer))]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send({"type": "http.response.body", "body": answer})


@pytest.mark.parametrize("http", ["httptools", pytest.param("h11", marks=pytest.mark.slow)])
def test_an_app_is_served(run: Run, tmp_path: Path, http: str) -> None:
    async def main() -> None:
        app = App()
        async with joined(tmp_path) as (_, home), asgi.serve(app, home, "web", http=http) as service:
            assert app.life == ["startup"]
            body = bytes(300_000)
            reader, writer = await asyncio.open_connection(service.host, service.port)
            writer.write(REQUEST % (b"POST", len(body), body))
            head, _, answer = (await reader.read()).partition(b"\r\n\r\n")
            writer.close()
            assert head.startswith(b"HTTP/1.1 200") and b"\r\ndate: " in head
            # The header is a stranger's own words: what counts is the tunnel's.
            assert json.loads(answer)["client"][0] == "127.0.0.1" and json.loads(answer)["size"] == len(body)
        assert app.life == ["startup", "shutdown"]

    run(main())


@pytest.mark.slow
def test_a_private_app(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        async with joined(tmp_path) as (server, home), asgi.serve(App(), home, "web", kind="private"):
            reader, writer = await server.open_connection("web")
            writer.write(REQUEST % (b"GET", 0, b""))
            assert (await reader.read()).endswith(b'{"client": null, "size": 0}')
            writer.close()

    run(main())


def test_an_app_under_its_host_name(run: Run, tmp_path: Path) -> None:
    """There the relay writes who asked, and instead of a visitor who says so himself."""

    async def main() -> None:
        web = {"http": "127.0.0.1:0", "domain": "home.example"}
        async with relay(tmp_path, **web) as server, tunnel(server, tmp_path) as home:
            async with asgi.serve(App(), home, "web", kind="http") as service:
                assert service.host == "web.home.example"
                assert service.url == f"http://web.home.example:{service.port}"
                reader, writer = await asyncio.open_connection("127.0.0.1", service.port)
                writer.write((REQUEST % (b"GET", 0, b"")).replace(b"Host: web", b"Host: " + service.host.encode()))
                head, _, answer = (await reader.read()).partition(b"\r\n\r\n")
                writer.close()
                assert head.startswith(b"HTTP/1.1 200")
                assert json.loads(answer)["client"][0] == "127.0.0.1"

    run(main())


def test_websockets(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        async with joined(tmp_path) as (_, home), asgi.serve(App(), home, "web") as service:
            async with websocket(f"ws://{service.host}:{service.port}/", proxy=None) as visitor:
                await visitor.send("hello")
                assert await visitor.recv() == "HELLO"

    run(main())


def test_an_app_that_does_not_start(run: Run, tmp_path: Path) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "lifespan.startup.failed", "message": "no database"})

    async def main() -> None:
        async with joined(tmp_path) as (_, home):
            with pytest.raises(StartError):
                async with asgi.serve(app, home, "web"):
                    pass
            assert home.is_up

    run(main())


@pytest.mark.slow
def test_cancelled_at_every_await(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        async with joined(tmp_path) as (server, home):

            async def work() -> None:
                async with asgi.serve(App(), home, "web", kind="private", drain=0):
                    reader, writer = await server.open_connection("web")
                    try:
                        writer.write(REQUEST % (b"GET", 0, b""))
                        assert b" 200 " in await reader.read()
                    finally:
                        writer.close()

            await at_every_await(work, lambda: not home._client.runtime.edges)
            await work()

    run(main())


@pytest.mark.slow
def test_a_request_that_does_not_end_is_given_up(run: Run, tmp_path: Path) -> None:
    asked: list[str] = []

    async def main() -> None:
        async def app(scope: Any, receive: Any, send: Any) -> None:
            if scope["type"] != "http":
                return
            asked.append("asked")
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                asked[:] = ["cancelled"]
                raise

        async with joined(tmp_path) as (_, home):
            async with asgi.serve(app, home, "web", drain=0) as service:
                reader, writer = await asyncio.open_connection(service.host, service.port)
                writer.write(REQUEST % (b"GET", 0, b""))
                await until(lambda: asked, "the request is under way")
            assert asked == ["cancelled"]
        with contextlib.suppress(ConnectionResetError):
            assert b"200" not in await reader.read()
        writer.close()

    run(main())

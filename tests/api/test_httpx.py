"""Requests of httpx2 through a tunnel: pooled connections, bodies both ways, TLS, timeouts, and errors of its own kinds."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import httpx2
import pytest

from fastrelay.httpx import Transport
from tests.api.programs import joined, local
from tests.api.test_cancellation import at_every_await
from tests.conftest import Run
from tests.support.certificates import Authority

HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s"


class Site:
    """A small server of HTTP/1.1 on streams: the body comes back; `/slow` never answers, `/broken` not whole."""

    def __init__(self) -> None:
        self.connections = 0

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        while line := await reader.readline():
            path = line.split()[1]
            size, chunked = 0, False
            while (field := await reader.readline()).strip():
                name, _, value = field.lower().partition(b":")
                size = int(value) if name == b"content-length" else size
                chunked = chunked or name == b"transfer-encoding"
            body = await reader.readexactly(size)
            while chunked and (piece := int(await reader.readline(), 16)):
                body += (await reader.readexactly(piece + 2))[:-2]
            if chunked:
                await reader.readline()
            if path == b"/slow":
                await asyncio.sleep(60)
            if path == b"/broken":
                writer.write(HEAD % (100, b"half"))
                await writer.drain()
                writer.transport.abort()
                return
            writer.write(HEAD % (len(body) + len(path), path + body))
            await writer.drain()
            if path == b"/last":
                break
        writer.close()


def test_requests_share_connections(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        site = Site()
        async with joined(tmp_path) as (server, home), home.listen("jobs", site):
            for way in (home, server):
                async with httpx2.AsyncClient(transport=Transport(way)) as http:
                    for number in range(3):
                        answer = await http.get(f"http://jobs/{number}")
                        assert (answer.status_code, answer.text) == (200, f"/{number}")
            assert site.connections == 2

    run(main())


@pytest.mark.slow
def test_bodies_stream_both_ways(run: Run, tmp_path: Path) -> None:
    async def parts() -> AsyncIterator[bytes]:
        for _ in range(50):
            yield bytes(10_000)

    async def main() -> None:
        async with joined(tmp_path) as (_, home), home.listen("jobs", Site()):
            async with httpx2.AsyncClient(transport=Transport(home)) as http:
                async with http.stream("POST", "http://jobs/", content=parts()) as answer:
                    size = 0
                    async for part in answer.aiter_bytes():
                        size += len(part)
                assert size == 500_001

    run(main())


def test_a_connection_that_was_ended_is_not_used_again(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        site = Site()
        async with joined(tmp_path) as (_, home), home.listen("jobs", site):
            async with httpx2.AsyncClient(transport=Transport(home)) as http:
                await http.get("http://jobs/last")
                await asyncio.sleep(0.05)
                assert (await http.get("http://jobs/again")).text == "/again"
            assert site.connections == 2

    run(main())


def test_errors_are_of_its_own_kinds(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        async with joined(tmp_path) as (_, home), home.listen("jobs", Site()):
            async with httpx2.AsyncClient(transport=Transport(home), timeout=0.1) as http:
                with pytest.raises(httpx2.ConnectError, match="no private service 'nothing'"):
                    await http.get("http://nothing/")
                with pytest.raises(httpx2.ReadTimeout):
                    await http.get("http://jobs/slow")
                with pytest.raises(httpx2.ReadError):
                    await http.get("http://jobs/broken")

    run(main())


@pytest.mark.slow
def test_cancelled_at_every_await(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        async with joined(tmp_path) as (server, home), home.listen("jobs", Site()):

            async def work() -> None:
                async with httpx2.AsyncClient(transport=Transport(server)) as http:
                    assert (await http.post("http://jobs/", content=bytes(1000))).content == b"/" + bytes(1000)

            runtime = server._running.runtime
            await at_every_await(work, lambda: not runtime.edges)
            await work()

    run(main())


@pytest.mark.slow
def test_https(run: Run, tmp_path: Path) -> None:
    """TLS is between here and the target; the name in the URL is the one that must be in its certificate."""

    async def main() -> None:
        authority = Authority(tmp_path / "ca")
        server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        server.load_cert_chain(*authority.issue("target", host="127.0.0.1"))
        trusting = authority.trusting()
        trusting.check_hostname = False  # the service is called by another name than its certificate, an address

        async with joined(tmp_path) as (_, home), local(Site(), ssl=server) as port:
            await home.expose(f"jobs=private://{port}")
            async with httpx2.AsyncClient(transport=Transport(home, verify=trusting)) as http:
                assert (await http.post("https://jobs/", content=bytes(200_000))).content == b"/" + bytes(200_000)
            async with httpx2.AsyncClient(transport=Transport(home)) as http:
                with pytest.raises(httpx2.ConnectError, match="certificate"):
                    await http.get("https://jobs/")

    run(main())

"""Out through a proxy: `HTTPS_PROXY` and CONNECT (RFC 9110, section 9.3.6), for networks that let nothing else out.

What the environment says is read the way that curl and urllib read it. Invariant: the proxy's credentials go to the proxy, and nowhere else.
"""

from __future__ import annotations

import asyncio
import base64
import os
import re
import socket
from dataclasses import dataclass, field

from fastrelay.config import is_loopback, join_host, parse_host
from fastrelay.errors import ProxyError, UsageError
from fastrelay.net.heads import END
from fastrelay.wire import MAX_HEAD

_STATUS = re.compile(rb"HTTP/1\.[01] ([1-5][0-9][0-9])[ \r]")
_HINTS = {
    401: "put USER:PASSWORD@ into HTTPS_PROXY",
    407: "put USER:PASSWORD@ into HTTPS_PROXY",
    403: "it does not let this host and port pass; many let only port 443 pass",
    405: "it does not let this host and port pass; many let only port 443 pass",
}


@dataclass(frozen=True)
class Proxy:
    """`credentials` are those of Basic, USER:PASSWORD, a secret; "" for none."""

    host: str
    port: int
    credentials: str = field(default="", repr=False)

    def __str__(self) -> str:
        return join_host(self.host, self.port)


def parse_proxy(text: str) -> Proxy:
    """`[http://][USER:PASSWORD@]HOST[:PORT]`. Raises UsageError, which never quotes the text: it may hold a password."""
    from urllib.parse import unquote, urlsplit

    wrong = UsageError(
        "HTTPS_PROXY is not understood, as it is no address of an HTTP proxy: write it like http://proxy.example:3128, or unset it."
    )
    try:
        url = urlsplit(text if "://" in text else f"http://{text}")
        host, port = parse_host(url.hostname or ""), url.port
    except (ValueError, UsageError):
        raise wrong from None
    if url.scheme != "http" or url.path.strip("/") or url.query or url.fragment:
        raise wrong
    user, password = unquote(url.username or ""), unquote(url.password or "")
    return Proxy(host, port or 80, f"{user}:{password}" if user or password else "")


def proxy_for(host: str, port: int) -> Proxy | None:
    """What `https_proxy` or `HTTPS_PROXY` says, unless `no_proxy` or `NO_PROXY` names the host; None for this machine itself. Raises UsageError."""
    if is_loopback(host) or not any(name.lower() == "https_proxy" for name in os.environ):
        return None  # as nearly always: what reads it is slow to load
    from urllib.request import getproxies_environment, proxy_bypass_environment  # type: ignore[attr-defined]

    text = getproxies_environment().get("https", "")
    return None if not text or proxy_bypass_environment(join_host(host, port)) else parse_proxy(text)


async def connect_through(proxy: Proxy, host: str, port: int) -> socket.socket:
    """A connection to `host` and `port` that the proxy has made, not blocking. Raises ProxyError, half a sentence."""
    loop = asyncio.get_running_loop()
    error: OSError | None = None
    try:
        found = await loop.getaddrinfo(proxy.host, proxy.port, type=socket.SOCK_STREAM)
    except OSError as failure:
        error, found = failure, []
    for family, kind, number, _, address in found:
        sock = socket.socket(family, kind, number)
        try:
            sock.setblocking(False)
            await loop.sock_connect(sock, address)
            await _ask(sock, proxy, join_host(host, port))
        except OSError as failure:
            sock.close()
            error = failure
        except BaseException:
            sock.close()
            raise
        else:
            return sock
    number = getattr(error, "errno", None) or 0
    reason = os.strerror(number) if number > 0 else error  # getaddrinfo has errors below 0, and words of its own
    raise ProxyError(f"the proxy {proxy} of HTTPS_PROXY cannot be reached ({reason})")


async def _ask(sock: socket.socket, proxy: Proxy, where: str) -> None:
    loop = asyncio.get_running_loop()
    head = f"CONNECT {where} HTTP/1.1\r\nHost: {where}\r\n"
    if proxy.credentials:
        head += f"Proxy-Authorization: Basic {base64.b64encode(proxy.credentials.encode()).decode()}\r\n"
    await loop.sock_sendall(sock, f"{head}\r\n".encode())
    said = b""
    while END not in said:
        piece = await loop.sock_recv(sock, MAX_HEAD - len(said))
        if not piece:  # an end, or more than a head may be
            raise ProxyError(f"the proxy {proxy} of HTTPS_PROXY does not answer CONNECT")
        said += piece
    status = _STATUS.match(said)
    if status is None or not said.endswith(END):  # a relay says nothing before it was spoken to
        raise ProxyError(f"the proxy {proxy} of HTTPS_PROXY does not answer CONNECT as a proxy does")
    code = int(status[1])
    if not 200 <= code < 300:
        hint = f": {_HINTS[code]}" if code in _HINTS else ""
        raise ProxyError(f"the proxy {proxy} of HTTPS_PROXY answers {code}{hint}")

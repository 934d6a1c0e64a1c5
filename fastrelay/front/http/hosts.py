"""Whom a request is for, by its Host (RFC 9110, 7.2): a service under the relay's domain, the relay itself, or nobody.

    NAME.DOMAIN                                         the service NAME: 502 while its client is away, 404 where there is none
    DOMAIN, --advertise, localhost, any IP address      the relay's own paths
    anything else                                       404

A port in Host means nothing: what is in front of the relay may have another. One dot at the end is the root of DNS and means nothing either.
Other spellings are other hosts; names of other letters come in their xn-- form, and bytes that no host name has were refused with the head.
"""

from __future__ import annotations

import hmac
import ipaddress
from functools import lru_cache
from hashlib import sha256
from typing import Final

from fastrelay.errors import Code, MessageError
from fastrelay.front.http.logins import basic
from fastrelay.front.http.messages import Request
from fastrelay.front.http.own import Own
from fastrelay.front.http.pooled import Pooled
from fastrelay.front.http.way import Way
from fastrelay.roles.directory import Directory
from fastrelay.roles.pools import Pool
from fastrelay.roles.sites import Site

_SITES: Final = (Site, Pool)
_LOGIN: Final = frozenset((b"authorization",))
"""What the relay has asked for is not passed on."""


class Hosts:
    """`domain` is "" for a relay without services of this kind; `names` are its own hosts."""

    def __init__(self, domain: str, names: frozenset[str], directory: Directory, own: Own) -> None:
        self._suffix = f".{domain}" if domain else ""
        self._names = names
        self._directory = directory
        self._own = own

    def route(self, request: Request, visitor: str) -> Way:
        """Raises MessageError."""
        host = host_of(request.host)
        if self._suffix and host.endswith(self._suffix) and host not in self._names:
            return self._to_site(host[: -len(self._suffix)], request, visitor)
        if host in self._names or _is_address(host):
            return self._own(request, visitor)
        raise _unknown(host)

    def _to_site(self, name: str, request: Request, visitor: str) -> Way:
        site = self._directory.pool(name) or self._directory.service(name)
        if site is Code.AWAY:
            raise MessageError(502, "The service's machine is not connected to the relay now: try again in a moment.")
        if isinstance(site, Code) or site.kind != "http" or not isinstance(site, _SITES):
            raise _unknown(name + self._suffix)
        if not site.admits(visitor):
            site.deny(visitor)
            raise MessageError(403, "Your address is not in the list of those that may visit this service.")
        backend = site if isinstance(site, Site) else Pooled(site)
        if not site.login:
            return Way(backend, request)
        if not _shows(request, site.login):
            raise MessageError(
                401,
                "This service asks for a user name and a password.",
                fields=f'WWW-Authenticate: Basic realm="{name}", charset="UTF-8"\r\n',
            )
        return Way(backend, request, without=_LOGIN)


@lru_cache(1024)
def host_of(raw: bytes) -> str:
    """A Host, in lower case, without port and brackets; most visitors name the same again."""
    text = raw.decode("ascii")
    if text.startswith("["):
        return text[1 : text.index("]")]
    return text.partition(":")[0].removesuffix(".")


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _unknown(host: str) -> MessageError:
    return MessageError(404, f"There is no service called {host} at this relay.")


def _shows(request: Request, login: bytes) -> bool:
    """Whether a request has the user name and password of which this is the SHA-256 (RFC 7617)."""
    pair = basic(request.fields)
    return pair is not None and hmac.compare_digest(sha256(pair).digest(), login)

"""The relay's own paths that lead through clients: `/client/…`, `/request` and `POST /tcpproxy`. Policy, directory, join.

Who calls shows a token, and gets what it grants to dial; the client has the last word. The token is for the relay: no target sees it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Final

from fastrelay.dialling import Place, read_place
from fastrelay.errors import Code, MessageError, ProtocolError
from fastrelay.front.http import calls, tcpproxy
from fastrelay.front.http.logins import password, token
from fastrelay.front.http.reach import Dialler, Reach, Reaches, Wanted
from fastrelay.front.http.way import Behind, Raw, Way

if TYPE_CHECKING:
    from fastrelay.front.http.messages import Request
    from fastrelay.front.http.own import Own
    from fastrelay.front.http.reach import Found
    from fastrelay.mux.stream import Stream
    from fastrelay.policy import Key
    from fastrelay.roles.server import Server

_OURS: Final = frozenset((b"authorization", calls.DESTINATION))
_LOGIN: Final = 'WWW-Authenticate: Basic realm="fastrelay"\r\n'
_TOKEN: Final = "This needs a token: send it as `Authorization: Bearer TOKEN`, or as the password of HTTP Basic."


@dataclass(frozen=True)
class Through(Behind):
    """A target behind a client, or behind any client that may dial it where `client` is "". Equal ones may share a connection."""

    scheme: str
    client: str
    target: str
    token: str
    doors: Doors = field(compare=False, repr=False)
    wanted: Wanted = field(compare=False, repr=False)
    failed: Callable[[Code, str], MessageError] = field(compare=False, repr=False)

    def search(self, visitor: str, found: Found, failed: Callable[[MessageError], None]) -> Reach:
        """Begin to look for a client; `visitor` is told to it."""

        def over(code: Code, why: str) -> None:
            failed(self.failed(code, why))

        return Reach(self.doors.reaches, self.wanted, visitor, found, over)


class Doors:
    """Of one relay."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self.reaches = Reaches(server.runtime)

    def add_to(self, own: Own) -> None:
        own.add(calls.CLIENT, self.client)
        own.add(calls.REQUEST, self.request)
        own.add(tcpproxy.PATH, self.tcpproxy)

    # --- /client/ID/SCHEME/HOST… ---------------------------------------------------------------------------------------

    def client(self, request: Request, visitor: str) -> Way:
        try:
            key = self._key(token(request.fields), visitor)
            call = calls.client_call(request.target)
            place = _place(call.destination.target, MessageError(400, "The path names no host that can be dialled."))
            if refusal := key.refuse_dial(call.client, place):
                raise self._refused(visitor, key, refusal.rule, MessageError(403, f"Not allowed: {refusal.text}."))
        except MessageError as error:
            raise _plain(error) from None
        return self._way(
            request, call.destination, key, place, call.client, 0.0, _client_failed, time=call.time, tell=_plain
        )

    # --- /request ------------------------------------------------------------------------------------------------------

    def request(self, request: Request, visitor: str) -> Way:
        try:
            key = self._key(token(request.fields), visitor)
            destination = calls.destination(request.fields)
            place = _place(destination.target, MessageError(526, "Unable to parse X-PROXY-DESTINATION header"))
            if refusal := key.refuse_place(place):
                raise self._refused(visitor, key, refusal.rule, MessageError(526, "Destination is not allowed"))
        except MessageError as error:
            raise _plain(error) from None
        wait = self._server.config.limits.request_wait
        return self._way(request, destination, key, place, "", wait, self._request_failed, tell=_not_executed)

    def _request_failed(self, code: Code, why: str) -> MessageError:
        """As wsp has it: 526 is the relay's word, 527 the client's."""
        if code in (Code.AWAY, Code.LIMIT):
            self._server.runtime.reached("request-wait", "calls without a client")
        known = _REQUEST.get(code)
        return MessageError(*known, plain=True) if known and not why else _not_executed(_client_failed(code, why))

    def _way(
        self,
        request: Request,
        destination: calls.Destination,
        key: Key,
        place: Place,
        client: str,
        wait: float,
        failed: Callable[[Code, str], MessageError],
        *,
        tell: Callable[[MessageError], MessageError],
        time: float = 0.0,
    ) -> Way:
        tls = destination.host if destination.scheme == "https" else ""
        backend = self._through(destination.scheme, client, place, key, tls, wait, failed)
        return Way(
            backend,
            request._replace(target=destination.path),
            host=destination.authority,
            without=_OURS,
            time=time,
            tell=tell,
        )

    # --- POST /tcpproxy ------------------------------------------------------------------------------------------------

    def tcpproxy(self, request: Request, visitor: str) -> Way:
        try:
            if request.method != b"POST":
                raise MessageError(405, "only POST is served here", fields="Allow: POST\r\n")
            shown = password(request.fields)
            if shown is None:
                raise tcpproxy.no_auth()
            try:
                key = self._server.keyring.bearer(shown, time.time())
            except ProtocolError as error:
                raise self._unknown(visitor, error, tcpproxy.bad_auth()) from None
            name = tcpproxy.client(request.fields)
            if not self._diallers(name):
                raise tcpproxy.unknown(name)
            if refusal := key.refuse_through(name):
                raise self._refused(visitor, key, refusal.rule, tcpproxy.foreign(name))
            place = _place(tcpproxy.target(request), tcpproxy.no_host())
            if refusal := key.refuse_dial(name, place):
                raise self._refused(visitor, key, refusal.rule, tcpproxy.denied(place, refusal.text))
        except MessageError as error:
            raise _plain(error) from None
        backend = self._through("tcp", name, place, key, "", 0.0, partial(_tcpproxy_failed, place))
        raw = Raw(tcpproxy.SWITCHED, tcpproxy.BUFFERED)
        return Way(backend, request._replace(upgrade=b"tcpproxy", keep_alive=True), raw=raw, tell=_plain)

    # --- who, and through whom -----------------------------------------------------------------------------------------

    def _key(self, text: str, visitor: str) -> Key:
        if not text:
            raise MessageError(401, _TOKEN, fields=_LOGIN)
        try:
            return self._server.keyring.bearer(text, time.time())
        except ProtocolError as error:
            raise self._unknown(
                visitor, error, MessageError(401, f"Not allowed: {error.text}.", fields=_LOGIN)
            ) from None

    def _through(
        self,
        scheme: str,
        client: str,
        place: Place,
        key: Key,
        tls: str,
        wait: float,
        failed: Callable[[Code, str], MessageError],
    ) -> Through:
        server = self._server

        def clients() -> Sequence[Dialler]:
            if client:
                return self._diallers(client)
            return [one for one in server.directory.clients() if key.refuse_dial(one.name, place) is None]

        def opened(stream: Stream) -> None:
            server.keyring.lend(key, stream)

        wanted = Wanted(clients, str(place), tls, wait, opened)
        return Through(scheme, client, str(place), key.key_id, self, wanted, failed)

    def _diallers(self, name: str) -> Sequence[Dialler]:
        found = self._server.directory.client(name)
        return () if isinstance(found, Code) else (found,)

    def _unknown(self, visitor: str, why: ProtocolError, answer: MessageError) -> MessageError:
        self._server.runtime.notices.say(
            "calls",
            "call.refused",
            f"Refused a call of {visitor}: {why.text}.",
            visitor=visitor,
            status=answer.status,
            token=why.fields.get("token"),
            key_id=why.fields.get("key_id"),
            rule=why.fields.get("rule") or "token",
        )
        return answer

    def _refused(self, visitor: str, key: Key, rule: str, answer: MessageError) -> MessageError:
        self._server.runtime.notices.say(
            f"calls of {key.label}",
            "call.refused",
            f"Refused a call of {visitor} with the token {key.label}: {answer.text.removesuffix('.')}.",
            visitor=visitor,
            status=answer.status,
            token=key.label,
            key_id=key.key_id,
            rule=rule,
        )
        return answer


# --- what is said ------------------------------------------------------------------------------------------------------

_CLIENT: Final = {
    Code.AWAY: (502, "The client is not connected to the relay."),
    Code.LIMIT: (503, "The client takes no more connections now: try again in a moment."),
    Code.NO_SERVICE: (403, "The client dials nothing for others: it was started without --allow-dial."),
    Code.DIAL_DENIED: (403, "The client does not dial that: its --allow-dial does not have it."),
    Code.DIAL_FORBIDDEN: (403, "The client does not dial that: its --deny-dial has it."),
    Code.REFUSED: (502, "The target refused the connection."),
    Code.UNREACHABLE: (502, "The target cannot be reached from the client."),
    Code.DIAL_TIMEOUT: (504, "The target did not answer the client in time."),
}
_REQUEST: Final = {
    Code.AWAY: (526, "No proxy available"),
    Code.LIMIT: (526, "Unable to get a proxy connection"),
    Code.DIAL_FORBIDDEN: (527, "Destination is forbidden"),
    Code.DIAL_DENIED: (527, "Destination is not allowed"),
    Code.NO_SERVICE: (527, "Destination is not allowed"),
}
_LOST: Final = (502, "The connection to the target was lost.")


def _plain(error: MessageError) -> MessageError:
    return MessageError(error.status, error.text, plain=True, fields=error.fields)


def _place(text: str, otherwise: MessageError) -> Place:
    try:
        return read_place(text)
    except ValueError:
        raise otherwise from None


def _client_failed(code: Code, why: str) -> MessageError:
    status, text = (502, f"The target cannot be talked to: {why}.") if why else _CLIENT.get(code, _LOST)
    return MessageError(status, text, plain=True)


def _not_executed(error: MessageError) -> MessageError:
    return MessageError(527, f"Unable to execute request : {error.text}", plain=True)


def _tcpproxy_failed(place: Place, code: Code, why: str) -> MessageError:
    if code in (Code.DIAL_DENIED, Code.DIAL_FORBIDDEN, Code.NO_SERVICE):
        return _plain(tcpproxy.denied(place, _CLIENT[code][1]))
    return MessageError(500, f"failed to connect to port {place.port}: {tcpproxy.reason(code)}", plain=True)

"""The tokens of a running relay: who is let in, and who has to go when tokens.json changes or a token's time is over (protocol.md 4.5)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

from fastrelay import log
from fastrelay.auth import Token, holds
from fastrelay.errors import Code, ProtocolError, StartError, UsageError
from fastrelay.matching import Refusal
from fastrelay.mux.stream import Stream
from fastrelay.policy import Key, standing
from fastrelay.state import ServerState

_LOOK_EVERY = 0.25
"""Seconds between two looks at the file; a token that was revoked is without sessions a moment later."""
_SWEEP_AT = 64


class Holder(Protocol):
    """A session that was admitted with `key`."""

    key: Key

    def dismiss(self, error: ProtocolError) -> None:
        """End at once, with this goodbye."""


class Loan:
    """A stream that was opened for who showed a token. Ended ones are forgotten when there are many."""

    __slots__ = ("key", "stream")

    def __init__(self, key: Key, stream: Stream) -> None:
        self.key = key
        self.stream = stream

    def dismiss(self, error: ProtocolError) -> None:
        if not self.stream.ended:
            self.stream.abort(Code.UNAUTHORIZED)


class Keyring:
    """`holders` are all sessions that stand. Looks at the tokens from `start` to `close`; `also` is called at every look."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        state: ServerState,
        holders: Callable[[], Iterable[Holder]],
        also: Callable[[], None],
    ) -> None:
        self._loop = loop
        self._state = state
        self._holders = holders
        self._also = also
        self._timer: asyncio.TimerHandle | None = None
        self._loans: list[Loan] = []
        self._sweep_at = _SWEEP_AT

    def start(self) -> None:
        self._timer = self._loop.call_later(_LOOK_EVERY, self._look)

    def close(self) -> None:
        """May be called again."""
        if self._timer is not None:
            self._timer.cancel()

    def admit(self, key_id: str, name: str, now: float) -> Key:
        """The key of a client called `name` that has proved its right to `key_id`; `now` is unix time. "" is one that only reaches others.

        Raises ProtocolError: UNAUTHORIZED for a token that is over, DENIED for a name that it does not grant.
        """
        key = self._state.find(key_id)
        if key is None:
            raise ProtocolError(Code.UNAUTHORIZED, "the token was revoked just now", name=name)
        if refusal := key.expired(now):
            raise _error(Code.UNAUTHORIZED, key, refusal, name=name)
        if refusal := key.refuse_name(name) if name else key.refuse_visits():
            raise _error(Code.DENIED, key, refusal, name=name)
        return key

    def bearer(self, text: str, now: float) -> Key:
        """The key of a token that is shown whole, outside of any session; `now` is unix time.

        Raises ProtocolError (UNAUTHORIZED) for one that is none, is unknown or over, or is valid only together with a certificate.
        """
        try:
            token = Token.parse(text)
        except UsageError:
            raise ProtocolError(Code.UNAUTHORIZED, "that is no token of fastrelay") from None
        if self._state.find(token.key_id) is None:
            self.refresh()  # it may have been made just now
        key = self._state.find(token.key_id)
        if not holds(token, key) or key is None:
            raise ProtocolError(Code.UNAUTHORIZED, "the token is not valid on this relay", key_id=token.key_id)
        if refusal := key.expired(now):
            raise _error(Code.UNAUTHORIZED, key, refusal)
        if key.cert:
            refusal = Refusal(
                "certificate", "the token is valid only together with a client certificate, which nobody shows here"
            )
            raise _error(Code.UNAUTHORIZED, key, refusal)
        return key

    def lend(self, key: Key, stream: Stream) -> None:
        """Reset this stream, which somebody has by `key` and without a session, as soon as the token no longer grants it."""
        if len(self._loans) >= self._sweep_at:
            self._loans = [loan for loan in self._loans if not loan.stream.ended]
            self._sweep_at = max(_SWEEP_AT, 2 * len(self._loans))
        self._loans.append(Loan(key, stream))

    def refresh(self) -> None:
        """Take in a change of the file now: a token is good as soon as the command that has made it is done."""
        before = self._state.keys
        try:
            changed = self._state.reload()
        except StartError as error:
            log.error("token.not_loaded", f"The relay goes on with the tokens that it has. {error}")
            return
        if changed:
            _tell(before, self._state.keys)
            self._judge(time.time())

    def _look(self) -> None:
        self._timer = self._loop.call_later(_LOOK_EVERY, self._look)
        self.refresh()
        if any(key.grant.expires for key in self._state.keys.values()):
            self._judge(time.time())
        self._also()

    def _judge(self, now: float) -> None:
        for holder in [*self._holders(), *self._loans]:
            current = self._state.find(holder.key.key_id)
            if refusal := standing(holder.key, current, now):
                code = Code.NO_ERROR if refusal.rule == "changed" else Code.UNAUTHORIZED
                holder.dismiss(_error(code, holder.key, refusal))
            elif current is not None:
                holder.key = current


def _error(code: Code, key: Key, refusal: Refusal, **fields: object) -> ProtocolError:
    return ProtocolError(code, refusal.text, token=key.label, key_id=key.key_id, rule=refusal.rule, **fields)


def _tell(before: Mapping[str, Key], now: Mapping[str, Key]) -> None:
    added = [key.label for key_id, key in now.items() if key_id not in before]
    removed = [key.label for key_id, key in before.items() if key_id not in now]
    changed = [key.label for key_id, key in now.items() if before.get(key_id, key) != key]
    words = [
        f"{what} {', '.join(labels)}"
        for what, labels in (("added", added), ("removed", removed), ("changed", changed))
        if labels
    ]
    log.info(
        "token.loaded",
        f"Tokens have changed: {'; '.join(words) or 'nothing that counts'}.",
        added=added,
        removed=removed,
        changed=changed,
    )

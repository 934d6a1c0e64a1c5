"""Tokens for tests: made as the command line makes them, beside a relay that runs or not."""

from __future__ import annotations

from pathlib import Path

import msgspec

from fastrelay.auth import Token
from fastrelay.policy import Grant, Key
from fastrelay.state.tokens import TokenStore, new_token


def make_token(state: Path, label: str, **grant: object) -> Token:
    """A new token for clients named `label`, with all services and no ports, unless `grant` says otherwise."""
    token = new_token()
    with TokenStore(state).edit() as keys:
        keys.append(Key.made(token, label, msgspec.convert({"names": [label], "services": ["*"], **grant}, Grant), 1.0))
    return token


def change_grant(state: Path, label: str, **grant: object) -> None:
    """As an editor does."""
    with TokenStore(state).edit() as keys:
        for at, key in enumerate(keys):
            if key.label == label:
                members = {**msgspec.to_builtins(key.grant), **grant}
                keys[at] = msgspec.structs.replace(key, grant=msgspec.convert(members, Grant))


def revoke(state: Path, label: str) -> None:
    with TokenStore(state).edit() as keys:
        keys[:] = [key for key in keys if key.label != label]

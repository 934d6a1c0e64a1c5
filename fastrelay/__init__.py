"""fastrelay: a self-hosted TCP relay for services behind NAT.

In programs: `fastrelay.connect` and `fastrelay.Server` (see `fastrelay.api`), the exceptions of `fastrelay.errors`, and the modules `fastrelay.sync`,
`fastrelay.httpx`, `fastrelay.asgi`. They are loaded when they are asked for: the command line does without.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fastrelay.api import Listener as Listener
    from fastrelay.api import Peer as Peer
    from fastrelay.api import Server as Server
    from fastrelay.api import Service as Service
    from fastrelay.api import Tunnel as Tunnel
    from fastrelay.api import connect as connect
    from fastrelay.errors import AuthError as AuthError
    from fastrelay.errors import AwayError as AwayError
    from fastrelay.errors import DeniedError as DeniedError
    from fastrelay.errors import DialRefusedError as DialRefusedError
    from fastrelay.errors import DialTimeoutError as DialTimeoutError
    from fastrelay.errors import ExposeError as ExposeError
    from fastrelay.errors import FastrelayError as FastrelayError
    from fastrelay.errors import NameInUseError as NameInUseError
    from fastrelay.errors import NoServiceError as NoServiceError
    from fastrelay.errors import OpenError as OpenError
    from fastrelay.errors import StartError as StartError
    from fastrelay.errors import UnreachableError as UnreachableError
    from fastrelay.errors import UsageError as UsageError

__version__ = "0.1.0"

_API = frozenset({"Listener", "Peer", "Server", "Service", "Tunnel", "connect"})
_MODULES = frozenset({"api", "asgi", "errors", "httpx", "sync"})


def __getattr__(name: str) -> object:
    if name in _MODULES:
        return importlib.import_module(f"fastrelay.{name}")
    if name in _API:
        return getattr(importlib.import_module("fastrelay.api"), name)
    if (
        name.endswith("Error")
        and (error := getattr(importlib.import_module("fastrelay.errors"), name, None)) is not None
    ):
        return error
    raise AttributeError(f"module 'fastrelay' has no attribute {name!r}")

"""What a test needs from the machine. Missing: skipped with the reason, but a failure where CI=true promises it is there."""

from __future__ import annotations

import functools
import os
import resource
import shutil
import socket
import subprocess
from pathlib import Path
from typing import NoReturn

import pytest

PLACES = os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/local/sbin", "/usr/sbin", "/sbin"))


def missing(reason: str) -> NoReturn:
    """Skip, or fail in CI."""
    if os.environ.get("CI") == "true":
        pytest.fail(f"CI must have it: {reason}", pytrace=False)
    pytest.skip(reason)


def program(name: str) -> str:
    """The full path of a program."""
    path = shutil.which(name, path=PLACES)
    return path or missing(f"the program {name} is not installed")


def postgres() -> Path:
    """Where the programs of PostgreSQL's newest version are; Debian has only its clients on the path."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    return found[-1].parent if found else missing("the server of PostgreSQL is not installed")


def root(why: str) -> None:
    """The rights of root."""
    if os.geteuid() != 0:
        missing(f"root is needed {why}")


def uvloop() -> None:
    """uvloop, which Windows does not have."""
    try:
        import uvloop  # noqa: F401
    except ImportError:
        missing("uvloop is not installed")


def ipv6() -> None:
    """An IPv6 loopback address."""
    try:
        with socket.socket(socket.AF_INET6) as sock:
            sock.bind(("::1", 0))
    except OSError:
        missing("there is no IPv6 loopback address")


def files(number: int) -> None:
    """So many open files, for this process and those it starts."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < number <= hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (number, hard))
    elif soft < number:
        missing(f"{number} open files are needed and {hard} are allowed")


@functools.cache
def _kill_works(ss: str) -> bool:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)) as sock:
            subprocess.run(
                [ss, "-K", "-t", "-n", "dport", "=", f":{port}"], check=False, capture_output=True, timeout=30
            )
            return sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) != 0


def socket_kill() -> str:
    """The path of `ss`, on a kernel where `ss -K` ends a connection of another process."""
    ss = program("ss")
    root("to end a connection of another process")
    return (
        ss if _kill_works(ss) else missing("this kernel cannot end connections from outside (CONFIG_INET_DIAG_DESTROY)")
    )

"""How many descriptors there are, and how many are in use: whoever runs out of them loses connections that were about to come in."""

from __future__ import annotations

import fcntl
import os
import resource

from fastrelay.errors import StartError

SMALLEST_LIMIT = 128
_MOST = 1 << 20


def raise_limit(most: int | None = None) -> int:
    """Raise this process' soft limit of descriptors to the hard one, as servers do, or set it to `most` if that is given. Returns it.

    Raises StartError when there are too few to work with.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = hard if most is None else most if hard == resource.RLIM_INFINITY else min(most, hard)
    if soft != wanted:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            soft = wanted
        except (OSError, ValueError):
            pass
    if 0 <= soft < SMALLEST_LIMIT:
        raise StartError(
            f"This process may open {soft} files, at least {SMALLEST_LIMIT} are needed; raise the limit with `ulimit -n 4096`."
        )
    return limit()


def limit() -> int:
    """How many descriptors this process may have now: somebody may change that while it runs."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return _MOST if soft == resource.RLIM_INFINITY else min(soft, _MOST)


def lowest_free(fd: int) -> int:
    """The lowest number that is free, so that at least as many are in use; found out with the help of any open descriptor.

    It is as high as can be when there is none left.
    """
    try:
        free = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 0)
    except OSError:
        return _MOST
    os.close(free)
    return free

"""Running what a command has configured, until a signal stops it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from fastrelay.cli.output import say
from fastrelay.errors import StartError, UsageError

if TYPE_CHECKING:
    from fastrelay.app import OnStop
    from fastrelay.audit import AuditLog

T = TypeVar("T")


def run(
    work: Callable[[OnStop], Coroutine[Any, Any, T]],
    loop: str,
    drain_time: float | None,
    audit: Path | None = None,
    *,
    quiet: bool = False,
) -> T:
    """Run until it has ended, or a signal stops it. The first Ctrl-C drains and says so, the second ends at once; without a `drain_time` there
    is nothing to drain. `quiet` says nothing but warnings. Returns what `work` does.
    """
    import asyncio
    import contextlib
    import gc
    import logging
    import signal

    from fastrelay import log
    from fastrelay.console import set_up_logging

    set_up_logging()
    if quiet:
        log.LOGGER.setLevel(logging.WARNING)
    kept = None if audit is None else _open_audit(audit)
    interrupted = False

    async def main() -> T:
        def on_stop(stop: Callable[[], None]) -> None:
            def handle(number: int) -> None:
                nonlocal interrupted
                interrupted = interrupted or number == signal.SIGINT
                if not handled and drain_time is not None:
                    say(
                        f"Draining: open connections go on for up to {drain_time:g} s, new ones are refused. Ctrl-C again ends at once."
                    )
                handled.append(number)
                stop()

            handled: list[int] = []
            for number in (signal.SIGINT, signal.SIGTERM):
                asyncio.get_running_loop().add_signal_handler(number, handle, number)
            if kept is not None:
                asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, kept.reopen)

        # What was made until now lives as long as the process: the collector need not look at it again.
        gc.collect()
        gc.freeze()
        gc.set_threshold(10_000, 50, 50)
        return await work(on_stop)

    with kept or contextlib.nullcontext(), asyncio.Runner(loop_factory=loop_factory(loop)) as runner:
        try:
            result = runner.run(main())
        except Exception as error:
            log.note("process.failed", f"The process has ended: {error}")
            raise
    if interrupted:
        sys.exit(130)
    return result


def _open_audit(path: Path) -> AuditLog:
    from fastrelay.audit import AuditLog

    if str(path) == "-":
        raise UsageError(
            "The audit log needs a file of its own: give --audit FILE; what people are told goes to stderr anyway."
        )
    return AuditLog.open(path)


def loop_factory(wanted: str) -> Callable[[], Any] | None:
    """What makes the loop that is wanted; None is asyncio's own."""
    if wanted == "asyncio":
        return None
    try:
        import uvloop
    except ImportError:
        if wanted == "uvloop":
            raise StartError(
                "uvloop is not installed here: install it with `pip install uvloop`, or use --loop asyncio."
            ) from None
        return None
    return uvloop.new_event_loop

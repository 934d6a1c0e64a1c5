"""The command line: argv becomes a configuration, signals become stops, errors become sentences and exit codes.

Exit codes: 0 done, 1 failed while running, 2 usage, 3 cannot start or refused for good, 130 interrupted.
Imports of what runs are inside the commands, so that help and mistakes answer at once.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from fastrelay import __version__
from fastrelay.cli.keys import key
from fastrelay.cli.limits import Limited, limit_option
from fastrelay.cli.output import data, say, sentences
from fastrelay.cli.tokens import token
from fastrelay.errors import StartError, UsageError

if TYPE_CHECKING:
    from fastrelay.app import OnStop
    from fastrelay.audit import AuditLog
    from fastrelay.config import Exposure
    from fastrelay.roles.server import Server

_START = time.monotonic()


@click.group(context_settings={"auto_envvar_prefix": "FASTRELAY", "help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="fastrelay", allow_from_autoenv=False)  # images set FASTRELAY_VERSION
def cli() -> None:
    """Reach services behind NAT through a machine with an address.

    `fastrelay demo` shows it on this machine alone. For two machines: `fastrelay server` on the one with an address, and on the other
    the line that it prints.
    """


_loop = click.option(
    "--loop",
    type=click.Choice(["auto", "uvloop", "asyncio"]),
    default="auto",
    show_default=True,
    show_envvar=True,
    help="Event loop; auto is uvloop where it is installed.",
)


_audit = click.option(
    "--audit",
    type=click.Path(path_type=Path),
    metavar="FILE",
    show_envvar=True,
    help="Append every event to FILE, for this user only; SIGHUP opens it anew. README, Audit log, lists the events.",
)


def _expose(required: bool) -> Callable[[Callable[..., None]], Callable[..., None]]:
    return click.option(
        "--expose",
        metavar="SPEC",
        multiple=True,
        required=required,
        show_envvar=True,
        help="What visitors reach: [NAME=][tcp://][PUBLIC:][HOST:]PORT or [NAME=][PUBLIC:]unix:/path. May be repeated.",
    )


@cli.command(cls=Limited)
@click.option(
    "--bind",
    default="[::]:7443",
    show_default=True,
    show_envvar=True,
    help="HOST:PORT for clients; visitors' ports use the same host.",
)
@click.option(
    "--ports", default="20000-20999", show_default=True, show_envvar=True, help="Public ports that clients may have."
)
@click.option(
    "--advertise",
    default="",
    metavar="HOST",
    show_envvar=True,
    help="The address that clients and visitors type, if it is another one.",
)
@click.option(
    "--state", type=click.Path(path_type=Path), show_envvar=True, help="Directory for key, tokens and reservations."
)
@click.option(
    "--cert",
    type=click.Path(path_type=Path),
    show_envvar=True,
    help="TLS certificate chain (PEM) instead of the relay's own; with --key.",
)
@click.option("--key", type=click.Path(path_type=Path), show_envvar=True, help="The key of --cert (PEM).")
@click.option(
    "--client-ca",
    type=click.Path(path_type=Path),
    show_envvar=True,
    help="CAs (PEM) whose certificates clients may show, for tokens that need one and clients without a token.",
)
@click.option(
    "--require-client-cert", is_flag=True, show_envvar=True, help="Refuse clients without a certificate of --client-ca."
)
@click.option("--plaintext", is_flag=True, show_envvar=True, help="Tunnels without TLS; only on a loopback address.")
@_audit
@limit_option
@_loop
def server(
    bind: str,
    ports: str,
    advertise: str,
    state: Path | None,
    cert: Path | None,
    key: Path | None,
    client_ca: Path | None,
    require_client_cert: bool,
    plaintext: bool,
    audit: Path | None,
    limit: tuple[str, ...],
    loop: str,
) -> None:
    """Run the relay, on the machine with an address."""
    from fastrelay.app import run_server
    from fastrelay.config import DEFAULT_PORT, ServerConfig, parse_bind, parse_host, parse_ports
    from fastrelay.limits import Side, parse_limits
    from fastrelay.state import default_state

    if client_ca is None:
        _refuse_empty("FASTRELAY_SERVER_CLIENT_CA")
    if not require_client_cert:
        _refuse_empty("FASTRELAY_SERVER_REQUIRE_CLIENT_CERT")
    host, port = parse_bind(bind, DEFAULT_PORT)
    config = ServerConfig(
        bind_host=host,
        bind_port=port,
        ports=parse_ports(ports),
        advertise=parse_host(advertise) if advertise else "",
        state=state or default_state("server"),
        cert=cert,
        key=key,
        plaintext=plaintext,
        limits=parse_limits(limit, Side.RELAY),
        client_ca=client_ca,
        require_client_cert=require_client_cert,
    )
    _run(lambda on_stop: run_server(config, _server_ready, on_stop), loop, config.limits.drain_time, audit)


@cli.command(cls=Limited)
@click.argument("relay", envvar="FASTRELAY_RELAY")
@_expose(required=True)
@click.option(
    "--visitors",
    metavar="[NAME=]CIDR[,CIDR…]",
    multiple=True,
    show_envvar=True,
    help="Networks that may visit the service NAME, or every service that has none of its own; everybody may if there are none. May be repeated.",
)
@click.option("--name", metavar="ID", show_envvar=True, help="Who this client is; the host name if not given.")
@click.option(
    "--token",
    metavar="TOKEN",
    envvar="FASTRELAY_TOKEN",
    show_envvar=True,
    help="The relay's token (`fastrelay token show` there). Processes of other users can read it here: --token-file is better.",
)
@click.option(
    "--token-file",
    type=click.Path(path_type=Path),
    envvar="FASTRELAY_TOKEN_FILE",
    show_envvar=True,
    help="A file that holds the token.",
)
@click.option(
    "--client-cert",
    type=click.Path(path_type=Path),
    envvar="FASTRELAY_CLIENT_CERT",
    show_envvar=True,
    help="This client's TLS certificate chain (PEM), beside the token or instead of it; with --client-key.",
)
@click.option(
    "--client-key",
    type=click.Path(path_type=Path),
    envvar="FASTRELAY_CLIENT_KEY",
    show_envvar=True,
    help="The key of --client-cert (PEM).",
)
@click.option(
    "--pin",
    "pins",
    metavar="PIN",
    multiple=True,
    envvar="FASTRELAY_CLIENT_PIN",
    show_envvar=True,
    help="The relay's key (`fastrelay key show` there) instead of the token's pins; twice while it changes.",
)
@click.option(
    "--state", type=click.Path(path_type=Path), show_envvar=True, help="Directory that says which installation this is."
)
@_audit
@limit_option
@_loop
def client(
    relay: str,
    expose: tuple[str, ...],
    visitors: tuple[str, ...],
    name: str | None,
    token: str | None,
    token_file: Path | None,
    client_cert: Path | None,
    client_key: Path | None,
    pins: tuple[str, ...],
    state: Path | None,
    audit: Path | None,
    limit: tuple[str, ...],
    loop: str,
) -> None:
    """Expose services of this machine through RELAY: HOST[:PORT], [IPv6]:PORT, tls://… or, on this machine, tcp://…"""
    import socket
    from dataclasses import replace

    from fastrelay.app import run_client
    from fastrelay.auth import Token, parse_pin
    from fastrelay.config import ClientConfig, host_name, parse_expose, parse_relay
    from fastrelay.limits import Side, parse_limits
    from fastrelay.networks import assign
    from fastrelay.state import default_state

    if not visitors:
        _refuse_empty("FASTRELAY_CLIENT_VISITORS")
    exposures = [parse_expose(spec) for spec in expose]
    listed = assign(visitors, [exposure.name for exposure in exposures])
    secret = _token(token, token_file)
    if secret is not None:
        Token.parse(secret)
    config = ClientConfig(
        relay=parse_relay(relay),
        token=secret or "",
        exposures=tuple(replace(exposure, visitors=listed.get(exposure.name)) for exposure in exposures),
        name=host_name(socket.gethostname()) if name is None else name,
        state=state or default_state("client"),
        limits=parse_limits(limit, Side.CLIENT),
        client_cert=client_cert,
        client_key=client_key,
        pins=tuple(parse_pin(pin) for pin in pins),
    )
    _run(lambda on_stop: run_client(config, _reachable, on_stop), loop, config.limits.drain_time, audit)


@cli.command()
@_expose(required=False)
@_loop
def demo(expose: tuple[str, ...], loop: str) -> None:
    """Relay and client in one process on this machine: the whole way of a byte, in one command."""
    from fastrelay.app import run_demo
    from fastrelay.config import parse_expose
    from fastrelay.limits import DEFAULTS

    exposures = tuple(parse_expose(spec) for spec in expose)

    def reachable(exposure: Exposure, host: str, port: int) -> None:
        if not exposures:
            say(
                f"\nA relay and a client run on this machine. Send a byte through them:\n\n    curl http://{host}:{port}/\n"
            )
        else:
            say(f"\n{exposure.target} is reachable through a relay on this machine, at {host}:{port}.\n")
        say("Ctrl-C drains and stops.")
        data(f"tcp://{host}:{port}")

    _run(lambda on_stop: run_demo(exposures, reachable, on_stop), loop, DEFAULTS.drain_time)


@cli.command(add_help_option=False, context_settings={"ignore_unknown_options": True})
@click.argument("words", nargs=-1, type=click.UNPROCESSED)
def bench(words: tuple[str, ...]) -> None:
    """Measure this relay beside others, on this machine; from a checkout."""
    try:
        from bench.__main__ import main as measure
    except ModuleNotFoundError as error:
        raise StartError(
            f"The bench is not here (there is no Python module {error.name}): it runs in a clone of the repository, after `pip install -e '.[bench]'`."
        ) from error
    measure(args=list(words), prog_name="fastrelay bench")


cli.add_command(token)
cli.add_command(key)


# --- running -----------------------------------------------------------------------------------------------------------


def main() -> NoReturn:
    """The console script."""
    with sentences():
        try:
            cli(standalone_mode=False)
        except click.exceptions.Exit as done:
            sys.exit(done.exit_code)
        except click.Abort:
            sys.exit(130)
        except click.ClickException as error:
            error.show()
            sys.exit(error.exit_code)
    sys.exit(0)


def _run(
    work: Callable[[OnStop], Coroutine[Any, Any, None]], loop: str, drain_time: float, audit: Path | None = None
) -> None:
    """Run until a signal stops it. The first Ctrl-C drains and says so, the second ends at once."""
    import asyncio
    import contextlib
    import gc
    import signal

    from fastrelay import log
    from fastrelay.console import set_up_logging

    set_up_logging()
    kept = None if audit is None else _open_audit(audit)
    interrupted = False

    async def run() -> None:
        def on_stop(stop: Callable[[], None]) -> None:
            def handle(number: int) -> None:
                nonlocal interrupted
                interrupted = interrupted or number == signal.SIGINT
                if not handled:
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
        await work(on_stop)

    with kept or contextlib.nullcontext(), asyncio.Runner(loop_factory=_loop_factory(loop)) as runner:
        try:
            runner.run(run())
        except Exception as error:
            log.note("process.failed", f"The process has ended: {error}")
            raise
    if interrupted:
        sys.exit(130)


def _open_audit(path: Path) -> AuditLog:
    from fastrelay.audit import AuditLog

    if str(path) == "-":
        raise UsageError(
            "The audit log needs a file of its own: give --audit FILE; what people are told goes to stderr anyway."
        )
    return AuditLog.open(path)


def _loop_factory(wanted: str) -> Callable[[], Any] | None:
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


def _refuse_empty(variable: str) -> None:
    """What keeps somebody out is not to be switched off by a slip, such as an empty ${NAME} in a unit file."""
    if not os.environ.get(variable, "unset").strip():
        raise UsageError(f"{variable} is set but empty, which would keep nobody out: give it a value, or unset it.")


def _token(token: str | None, token_file: Path | None) -> str | None:
    if token is not None or token_file is None:
        return token
    try:
        return token_file.read_text()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise UsageError(
            f"The token file {token_file} cannot be read ({reason}): give one with the token in it."
        ) from None


# --- texts -------------------------------------------------------------------------------------------------------------


def _server_ready(server: Server, token: str) -> None:
    from fastrelay.config import join_host
    from fastrelay.console import own_address

    config = server.config
    where = join_host(config.advertise or own_address(config.bind_host), server.port)
    if sys.stderr.isatty():
        trust = "no TLS, this machine only"
        if server.identity is not None:
            own = config.cert is None
            trust = f"TLS 1.3, {'own certificate' if own else str(config.cert)}{', pinned by the token' if server.identity.self_signed else ''}"
        scheme = "tcp://" if config.plaintext else ""
        join = (
            f"fastrelay client {scheme}{where} --expose 22 --token {token}"
            if token
            else (f"fastrelay client {scheme}{where} --expose 22 --token-file FILE")
        )
        if config.require_client_cert:
            join += " --client-cert FILE --client-key FILE"
        say(
            f"fastrelay {__version__}   ready in {time.monotonic() - _START:.1f} s\n\n"
            f"  Clients     {where:<24}{trust}\n"
            f"  Visitors    tcp {config.ports}\n"
            f"  Memory      {server.bound}\n"
            f"  State       {config.state}\n\n"
            f"  On the machine to reach, run:\n\n"
            f"    {join}\n\n"
            f"  Ctrl-C drains and stops.\n"
        )
    data(f"{'tcp' if config.plaintext else 'tls'}://{where}")


def _reachable(exposure: Exposure, host: str, port: int) -> None:
    from fastrelay.config import join_host

    if sys.stderr.isatty() and exposure.target.port == 22:
        say(f"            Try it: ssh -p {port} you@{host}")
    data(f"tcp://{join_host(host, port)}")

"""`fastrelay server`."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fastrelay import __version__
from fastrelay.cli.limits import Limited, limit_option
from fastrelay.cli.options import audit_option, loop_option, refuse_empty
from fastrelay.cli.output import data, say
from fastrelay.cli.running import run
from fastrelay.cli.web import web_config, web_options

if TYPE_CHECKING:
    from fastrelay.roles.server import Server

_START = time.monotonic()


@click.command(cls=Limited)
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
@click.option(
    "--proxy-protocol",
    metavar="CIDR[,CIDR…]",
    multiple=True,
    show_envvar=True,
    help="Load balancers that begin each connection with a PROXY header (v1 or v2), which says who the visitor is. It is believed of nobody else. May be repeated.",
)
@click.option(
    "--behind-proxy",
    is_flag=True,
    show_envvar=True,
    help="Take tunnels from a proxy that ends TLS, as WebSocket in plain HTTP; clients say --behind-proxy too.",
)
@click.option(
    "--websocket-path",
    metavar="PATH",
    default="/fastrelay",
    show_default=True,
    show_envvar=True,
    help="Where clients with wss:// are taken, on the same port as others.",
)
@web_options
@audit_option
@limit_option
@loop_option
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
    proxy_protocol: tuple[str, ...],
    behind_proxy: bool,
    websocket_path: str,
    audit: Path | None,
    limit: tuple[str, ...],
    loop: str,
    **web: Any,
) -> None:
    """Run the relay, on the machine with an address."""
    from fastrelay.app import run_server
    from fastrelay.config import DEFAULT_PORT, ServerConfig, parse_bind, parse_host, parse_ports
    from fastrelay.limits import Side, parse_limits
    from fastrelay.networks import parse_balancers
    from fastrelay.state import default_state

    if client_ca is None:
        refuse_empty("FASTRELAY_SERVER_CLIENT_CA")
    if not require_client_cert:
        refuse_empty("FASTRELAY_SERVER_REQUIRE_CLIENT_CERT")
    if not proxy_protocol:
        refuse_empty("FASTRELAY_SERVER_PROXY_PROTOCOL")
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
        balancers=parse_balancers(proxy_protocol),
        behind_proxy=behind_proxy,
        websocket_path=websocket_path,
        **web_config(**web),
    )
    run(lambda on_stop: run_server(config, _server_ready, on_stop), loop, config.limits.drain_time, audit)


def _server_ready(server: Server, token: str) -> None:
    from fastrelay.config import join_host
    from fastrelay.console import own_address

    config = server.config
    # What is advertised leads to the proxy, if there is one, and not here.
    host = "" if config.behind_proxy else config.advertise
    where = join_host(host or own_address(config.bind_host), server.port)
    listens = [one[0] for one in (config.http, config.https) if one]
    fronts = [
        f"{scheme}://{join_host(config.advertise or own_address(host), port)}"
        for (scheme, port), host in zip(server.fronts, listens, strict=True)
    ]
    if sys.stderr.isatty():
        trust = "no TLS, this machine only"
        if config.behind_proxy:
            trust = "WebSocket without TLS, for a proxy that ends it"
        if server.identity is not None:
            own = config.cert is None
            trust = f"TLS 1.3, {'own certificate' if own else str(config.cert)}{', pinned by the token' if server.identity.self_signed else ''}"
        relay = config.front if config.behind_proxy else f"tcp://{where}" if config.plaintext else where
        proof = f"--token {token}" if token else "--token-file FILE"
        join = f"fastrelay client {relay} --expose 22 {proof}"
        under = f", services at *.{config.domain}" if config.domain else ""
        web = f"  Web         {', '.join(fronts)}{under}\n" if fronts else ""
        if config.require_client_cert:
            join += " --client-cert FILE --client-key FILE"
        say(
            f"fastrelay {__version__}   ready in {time.monotonic() - _START:.1f} s\n\n"
            f"  Clients     {where:<24}{trust}\n"
            f"  Visitors    tcp {config.ports}\n{web}"
            f"  Memory      {server.bound}\n"
            f"  State       {config.state}\n\n"
            f"  On the machine to reach, run:\n\n"
            f"    {join}\n\n"
            f"  Ctrl-C drains and stops.\n"
        )
    for line in (f"{config.scheme}://{where}", *fronts):
        data(line)

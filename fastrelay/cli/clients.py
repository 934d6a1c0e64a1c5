"""`fastrelay client`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from fastrelay.cli.limits import Limited, limit_option
from fastrelay.cli.options import audit_option, expose_option, loop_option, read_token, refuse_empty
from fastrelay.cli.output import data, say
from fastrelay.cli.running import run

if TYPE_CHECKING:
    from fastrelay.config import Exposure


@click.command(cls=Limited)
@click.argument("relay", envvar="FASTRELAY_RELAY")
@expose_option(required=True)
@click.option(
    "--visitors",
    metavar="[NAME=]CIDR[,CIDR…]",
    multiple=True,
    show_envvar=True,
    help="Networks that may visit the service NAME, or every service that has none of its own; everybody may if there are none. May be repeated.",
)
@click.option(
    "--proxy-protocol",
    metavar="[NAME=]v1|v2|off",
    multiple=True,
    show_envvar=True,
    help="Tell the target of the service NAME, or of all, who the visitor is: its connections begin with a PROXY header. May be repeated.",
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
@audit_option
@limit_option
@loop_option
def client(
    relay: str,
    expose: tuple[str, ...],
    visitors: tuple[str, ...],
    proxy_protocol: tuple[str, ...],
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
    from fastrelay.config import ClientConfig, assign_proxy, host_name, parse_expose, parse_relay
    from fastrelay.limits import Side, parse_limits
    from fastrelay.networks import assign
    from fastrelay.state import default_state

    if not visitors:
        refuse_empty("FASTRELAY_CLIENT_VISITORS")
    exposures = [parse_expose(spec) for spec in expose]
    services = [exposure.name for exposure in exposures]
    listed = assign(visitors, services)
    versions = assign_proxy(proxy_protocol, services)
    secret = read_token(token, token_file)
    if secret is not None:
        Token.parse(secret)
    config = ClientConfig(
        relay=parse_relay(relay),
        token=secret or "",
        exposures=tuple(
            replace(
                exposure,
                visitors=listed.get(exposure.name),
                proxy=versions[exposure.name],
            )
            for exposure in exposures
        ),
        name=host_name(socket.gethostname()) if name is None else name,
        state=state or default_state("client"),
        limits=parse_limits(limit, Side.CLIENT),
        client_cert=client_cert,
        client_key=client_key,
        pins=tuple(parse_pin(pin) for pin in pins),
    )
    run(lambda on_stop: run_client(config, _reachable, on_stop), loop, config.limits.drain_time, audit)


def _reachable(exposure: Exposure, host: str, port: int) -> None:
    from fastrelay.config import join_host

    if sys.stderr.isatty() and exposure.target.port == 22:
        say(f"            Try it: ssh -p {port} you@{host}")
    data(f"tcp://{join_host(host, port)}")

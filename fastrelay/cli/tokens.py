"""`fastrelay token …`: what the relay's owner does with its tokens, on the relay's machine. A relay that runs takes it in at once."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from fastrelay.cli.output import say, table
from fastrelay.cli.state import state_option
from fastrelay.errors import UsageError

if TYPE_CHECKING:
    from fastrelay.auth import Token
    from fastrelay.policy import Grant, Key
    from fastrelay.state import ServerState


@click.group()
def token() -> None:
    """The relay's tokens; on the relay's machine."""


def _identity(command: Callable[..., None]) -> Callable[..., None]:
    cert = click.option(
        "--cert",
        type=click.Path(path_type=Path),
        envvar="FASTRELAY_SERVER_CERT",
        show_envvar=True,
        help="The certificate that the relay is given, if any.",
    )
    key = click.option(
        "--key",
        type=click.Path(path_type=Path),
        envvar="FASTRELAY_SERVER_KEY",
        show_envvar=True,
        help="The key of --cert.",
    )
    return cert(key(command))


@token.command("new")
@click.argument("label")
@click.option(
    "--ports",
    metavar="LIST",
    default="",
    show_envvar=True,
    help="Public ports, as in 20000-20009,443, or relay for the relay's own range; none if not given. Those below 1024 only by number.",
)
@click.option(
    "--services",
    metavar="NAMES",
    show_envvar=True,
    help="Names of services between commas, with * for any characters; all if not given.",
)
@click.option(
    "--names",
    metavar="NAMES",
    show_envvar=True,
    help="Names of clients in the same form; only LABEL if not given.",
)
@click.option(
    "--reach",
    metavar="NAMES",
    default="",
    show_envvar=True,
    help="Private services that it may visit, in the same form; own stands for those of clients with this token. None if not given. "
    "With this alone it is for visiting only: no --services and no --names.",
)
@click.option(
    "--hosts",
    metavar="NAMES",
    default="",
    show_envvar=True,
    help="Host names of HTTP services, as in web.home.example or *.home.example; none if not given.",
)
@click.option(
    "--dial",
    metavar="RULE",
    multiple=True,
    show_envvar=True,
    help="What may be dialled through clients: CIDR[:PORTS] or NAMES[:PORTS], as in 10.0.0.0/8:22,5432 or *.lab.example:443; nothing if not given. May be repeated.",
)
@click.option(
    "--through",
    metavar="NAMES",
    show_envvar=True,
    help="The clients that dial that, in the form of --names; those of --names if not given. With this alone it is for visiting only.",
)
@click.option(
    "--expires",
    metavar="WHEN",
    show_envvar=True,
    help="30d, 12h or 90m from now, or the last day (UTC), as in 2030-12-31; never if not given.",
)
@click.option(
    "--max-streams",
    type=click.IntRange(1, 65535),
    metavar="N",
    show_envvar=True,
    help="Visitors that a client may have at a time.",
)
@click.option(
    "--client-cert",
    type=click.Path(path_type=Path),
    show_envvar=True,
    help="The client's TLS certificate (PEM): it must show this key as well. The relay needs --client-ca.",
)
@click.option("--no-token", is_flag=True, show_envvar=True, help="Make no secret: the key of --client-cert is enough.")
@state_option
@_identity
def new(
    label: str,
    ports: str,
    services: str | None,
    names: str | None,
    reach: str,
    hosts: str,
    dial: tuple[str, ...],
    through: str | None,
    expires: str | None,
    max_streams: int | None,
    client_cert: Path | None,
    no_token: bool,
    state: Path | None,
    cert: Path | None,
    key: Path | None,
) -> None:
    """Make a token called LABEL and print it, this once.

    It grants nothing but what is said here.
    """
    from fastrelay.dialling import Rules
    from fastrelay.net.tls import file_pin
    from fastrelay.policy import OWN, Grant, Key, Ports, check_label, parse_expiry, parse_hosts, parse_patterns
    from fastrelay.state.tokens import new_token

    now = time.time()
    check_label(label)
    reached = parse_patterns(reach, "service") if reach else ()
    served = parse_hosts(hosts)
    if through is not None and not dial:
        raise UsageError(
            "Nothing would be dialled through these clients: say what with --dial, as in --dial 10.0.0.0/8:22."
        )
    visits = bool(reached) or through is not None
    visits_only = visits and OWN not in reached and not (ports or served) and services is None and names is None
    clients = (() if visits_only else (label,)) if names is None else parse_patterns(names, "client")
    grant = Grant(
        names=clients,
        services=(() if visits_only else ("*",)) if services is None else parse_patterns(services, "service"),
        ports=str(Ports.parse(ports)),
        reach=reached,
        max_streams=max_streams or 0,
        expires=0.0 if expires is None else parse_expiry(expires, now),
        hosts=served,
        dial=Rules.parse(dial).texts(),
        through=() if not dial else (clients or (label,)) if through is None else parse_patterns(through, "client"),
    )
    if no_token and client_cert is None:
        raise UsageError("Without a token there must be a certificate: name the client's with --client-cert.")
    kept = _open(state)
    pins = _pins(kept, cert, key)
    made = new_token()
    shown = b"" if client_cert is None else file_pin(client_cert)
    with kept.tokens.edit() as keys:
        if any(other.label == label for other in keys):
            raise UsageError(
                f"There is a token {label!r} already: choose another label, or make a new secret for it with "
                f"`fastrelay token rotate {label}`."
            )
        for other in keys:
            if no_token and other.by_certificate and other.cert == shown:
                raise UsageError(
                    f"The key of {client_cert} is enough for {other.label!r} already: revoke that first, or make a certificate with "
                    "another key."
                )
        if no_token:
            keys.append(Key.for_certificate(made.key_id, shown, label, grant, now))
        else:
            keys.append(Key.made(made, label, grant, now, shown))
    _hand_out(kept, None if no_token else made, pins, label, grant, certified=client_cert is not None)


@token.command("list")
@state_option
def list_(state: Path | None) -> None:
    """Print a table of all tokens; no secrets."""
    from fastrelay.policy import show_time

    rows = [("LABEL", "KEY", "PROOF", "PORTS", "NAMES", "SERVICES", "REACH", "HOSTS", "EXPIRES", "CREATED")]
    for key in _open(state).tokens.all():
        grant = key.grant
        rows.append(
            (
                key.label,
                key.key_id,
                _proof(key),
                grant.ports or "-",
                ",".join(grant.names) or "-",
                ",".join(grant.services) or "-",
                ",".join(grant.reach) or "-",
                ",".join(grant.hosts) or "-",
                show_time(grant.expires) if grant.expires else "-",
                show_time(key.created),
            )
        )
    table(rows)


@token.command("show")
@click.argument("label", required=False)
@state_option
@_identity
def show(label: str | None, state: Path | None, cert: Path | None, key: Path | None) -> None:
    """Print the first token, or what the token LABEL grants.

    Whoever has the first token may expose services under every name, on the ports that the relay was started with.
    """
    kept = _open(state)
    if label is None:
        click.echo(kept.token(_pins(kept, cert, key)).text())
        return
    found = [one for one in kept.tokens.all() if one.label == label]
    if not found:
        raise _unknown(label)
    click.echo("\n\n".join(map(_description, found)))


@token.command("revoke")
@click.argument("label")
@state_option
def revoke(label: str, state: Path | None) -> None:
    """End the token LABEL, and the sessions of its clients."""
    with _open(state).tokens.edit() as keys:
        left = [key for key in keys if key.label != label]
        if len(left) == len(keys):
            raise _unknown(label)
        keys[:] = left
    say(f"The token {label!r} is revoked; a relay that runs ends its sessions within a second.")


@token.command("rotate")
@click.argument("label")
@click.option(
    "--keep", metavar="TIME", show_envvar=True, help="The old one is good for 30d, 12h or 90m more, not only until now."
)
@state_option
@_identity
def rotate(label: str, keep: str | None, state: Path | None, cert: Path | None, key: Path | None) -> None:
    """Make a new secret for the token LABEL and print it, this once."""
    from msgspec.structs import replace

    from fastrelay.auth import Verifier
    from fastrelay.policy import parse_duration, show_time
    from fastrelay.state.tokens import new_token

    now = time.time()
    end = now + parse_duration(keep) if keep is not None else 0.0
    kept = _open(state)
    pins = _pins(kept, cert, key)
    made = new_token()
    with kept.tokens.edit() as keys:
        old = [one for one in keys if one.label == label]
        if not old:
            raise _unknown(label)
        current = old[-1]
        if current.by_certificate:
            raise UsageError(
                f"{label!r} has no secret, its certificate is enough: revoke it, and name the new certificate in `fastrelay token new`."
            )
        if over := current.expired(now):
            raise UsageError(
                f"The time of a new secret would be over too, for {over.text}: revoke this one first, and give the new one the same label."
            )
        keys[:] = [one for one in keys if one.label != label]
        for one in old:
            if keep is not None and not one.expired(now):
                until = min(one.grant.expires or end, end)
                keys.append(replace(one, grant=replace(one.grant, expires=until)))
        verifier = Verifier.of(made)
        keys.append(
            replace(
                current,
                key_id=verifier.key_id,
                stored_key=verifier.stored_key,
                server_key=verifier.server_key,
                created=now,
            )
        )
    _hand_out(kept, made, pins, label, current.grant, certified=bool(current.cert))
    if keep is None:
        say("The old one is revoked; a relay that runs ends its sessions within a second.")
    else:
        say(f"The old one is good until {show_time(end)} at most.")


# --- what they share ---------------------------------------------------------------------------------------------------


def _open(state: Path | None) -> ServerState:
    from fastrelay.state import ServerState, default_state

    return ServerState.open(state or default_state("server"), read_only=True)


def _pins(kept: ServerState, cert: Path | None, key: Path | None) -> tuple[bytes, ...]:
    """What the tokens of this relay carry."""
    from fastrelay.net.keys import known_by, next_pair
    from fastrelay.net.tls import load_identity

    if cert is not None and key is not None:
        return known_by(load_identity(cert, key), None)
    own = kept.identity_paths
    # A relay with --plaintext has never needed a certificate.
    return known_by(load_identity(*own), next_pair(own)) if own[0].exists() else ()


def _unknown(label: str) -> UsageError:
    return UsageError(f"There is no token {label!r}: `fastrelay token list` shows those that there are.")


def _hand_out(
    kept: ServerState, made: Token | None, pins: tuple[bytes, ...], label: str, grant: Grant, *, certified: bool
) -> None:
    """The token alone on stdout, if there is one; on stderr what to do with it."""
    from fastrelay.auth import Token, pin_texts

    if made is not None:
        click.echo(Token(made.key_id, made.secret, pins).text())
    name = "" if "*" in grant.names else f" --name {_example(grant.names, 'NAME')}"
    service = "" if "*" in grant.services else f"{_example(grant.services, 'NAME')}="
    relay = _relay(kept)
    goal = "On the machine to reach"
    spec = "22" if grant.ports else "http://8000" if grant.hosts else "private://22"
    command = f"fastrelay client {relay or 'RELAY'}{name} --expose {service}{spec}"
    if not grant.names:
        goal = "On the machine of the visitor"
        command = f"fastrelay forward {relay or 'RELAY'} {_example(grant.reach, 'NAME')}"
        if not grant.reach:
            command = f"fastrelay socks {relay or 'RELAY'} {_example(grant.through, 'CLIENT')}"
    where = "" if relay else "this machine for RELAY and "
    proof = " --client-cert CERT --client-key KEY" if certified else ""
    if made is not None:
        what = f"This is the token {label!r}, which is shown this once. {goal}, with {where}a file that holds the token for FILE"
        proof += " --token-file FILE"
    else:
        what = f"The certificate is enough for {label!r}, there is no token. {goal}, with {where}its files for CERT and KEY"
        proof += "".join(f" --pin {pin}" for pin in pin_texts(pins))
    say(f"\n{what}, run:\n\n    {command}{proof}\n")
    if grant.names and not grant.ports and not grant.hosts:
        say(
            "It grants no public port, so with it a client can expose private services only. One that does is made like this: "
            "`fastrelay token new LABEL --ports 20000-20009`.\n"
        )


def _relay(kept: ServerState) -> str:
    """RELAY of a client's command line, as far as the relay has said where it listens."""
    from fastrelay.config import join_host
    from fastrelay.console import own_address

    if (kept_as := kept.address()).startswith("wss://"):
        return kept_as
    known = re.fullmatch(r"(tls|tcp)://(.+):([0-9]+)", kept_as)
    if known is None:
        return ""
    where = join_host(own_address(known[2].strip("[]")), int(known[3]))
    return f"tcp://{where}" if known[1] == "tcp" else where


def _example(patterns: tuple[str, ...], otherwise: str) -> str:
    return next((pattern for pattern in patterns if "*" not in pattern), otherwise)


def _proof(key: Key) -> str:
    """What a client proves itself with."""
    return "certificate" if key.by_certificate else "both" if key.cert else "token"


def _description(key: Key) -> str:
    from fastrelay.policy import show_time

    grant = key.grant
    over = " (over)" if key.expired(time.time()) else ""
    rows = {
        "label": key.label,
        "key": key.key_id,
        "proof": _proof(key),
        "ports": grant.ports or "none",
        "names": ",".join(grant.names) or "none",
        "services": ",".join(grant.services) or "none",
        "reach": ",".join(grant.reach) or "none",
        "hosts": ",".join(grant.hosts) or "none",
        "dial": " ".join(grant.dial) or "nothing",
        "through": ",".join(grant.through) or "none",
        "streams": str(grant.max_streams or "as many as the client takes"),
        "expires": f"{show_time(grant.expires)}{over}" if grant.expires else "never",
        "created": show_time(key.created),
    }
    return "\n".join(f"{name:<10}{value}" for name, value in rows.items())

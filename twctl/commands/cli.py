"""The command line. Nouns read (status, table, top, blame, classify, check, config), verbs change (run, drain...)."""

import contextlib
import ipaddress
import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

import typer

from twctl import __version__
from twctl.addresses import FAMILIES, Network, host_port
from twctl.classes import Class
from twctl.config.config import KEYS, Config, Effective, Mode, Probe, load
from twctl.errors import TwctlError
from twctl.linux.sysctl import journal_of
from twctl.table.maps import Reason, Table, Vestige, as_json
from twctl.table.pins import Pins
from twctl.table.tallies import By, Names, lines, ranking

app = typer.Typer(
    help="See what TIME_WAIT does on this host. Nouns read, verbs change.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

ConfigFile = Annotated[
    Path | None,
    typer.Option("--config", metavar="FILE", help="Configuration (TOML); default /etc/twctl.toml if it exists."),
]
PinsFolder = Annotated[Path | None, typer.Option("--pins", metavar="DIR", help="Folder under bpffs.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def _effective(file: Path | None, **options: object) -> Effective:
    return load(file, options)


def _config(file: Path | None, pins: Path | None) -> Config:
    return _effective(file, pins=pins).config


def _table(config: Config) -> Table:
    return Table(config.pins / "current")


@app.command()
def run(  # noqa: PLR0913, PLR0917 - each is an option
    config: ConfigFile = None,
    mode: Annotated[Mode | None, typer.Option(help="What to do with sessions.")] = None,
    listen: Annotated[str | None, typer.Option(metavar="HOST:PORT", help="Where metrics are served.")] = None,
    netns: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Namespace below /run/netns; may be repeated.")
    ] = None,
    probe: Annotated[Probe | None, typer.Option(help="What sees sessions being born.")] = None,
    pins: PinsFolder = None,
    *,
    release: Annotated[
        bool, typer.Option("--release", help="When stopped, remove everything, as 'twctl release' does.")
    ] = False,
    all_netns: Annotated[
        bool, typer.Option("--all-netns", help="Every namespace that has a name, as they come and go.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Mode vestigial also where the guard may not see what sockets see.")
    ] = False,
) -> None:
    """Run the daemon in the foreground, until SIGINT or SIGTERM."""
    given: dict[str, object] = {
        "mode": mode,
        "listen": listen,
        "netns": netns,
        "probe": probe,
        "pins": str(pins) if pins else None,
    }
    flags = {"all_netns": all_netns, "force": force}
    options = {name: value for name, value in (given | flags).items() if value}
    _effective(config, **options)
    request = json.dumps({"file": str(config) if config else None, "options": options, "release": release})
    os.execv(sys.executable, [sys.executable, "-m", "twctl.daemon.main", request])  # noqa: S606 - our own interpreter


@app.command()
def status(config: ConfigFile = None, pins: PinsFolder = None, *, json_: Json = False) -> None:
    """Counts by class, table against kernel, and what the other modes would have freed."""
    from twctl.commands import status as module  # noqa: PLC0415 - with prometheus_client, 14 MB that the other nouns do not need

    settings = _config(config, pins)
    found = module.status(_table(settings), settings.time_wait, daemon=Pins(settings.pins).locked(), pins=settings.pins)
    typer.echo(json.dumps(found) if json_ else module.text(found))


@app.command()
def table(  # noqa: PLR0913, PLR0917 - each is an option
    config: ConfigFile = None,
    pins: PinsFolder = None,
    class_: Annotated[str | None, typer.Option("--class", metavar="CLASS", help="loopback, local or remote.")] = None,
    family: Annotated[str | None, typer.Option(metavar="FAMILY", help="ipv4 or ipv6.")] = None,
    remote: Annotated[str | None, typer.Option(metavar="CIDR", help="Prefix that the remote address lies in.")] = None,
    local_port: Annotated[int | None, typer.Option(min=1, max=65535, help="Port on this host.")] = None,
    *,
    json_: Json = False,
) -> None:
    """Every live session, a line each."""
    families = (_one_of("--family", family, FAMILIES),) if family else FAMILIES
    label = _one_of("--class", class_, [each.label for each in Class]) if class_ else None
    prefix = _network(remote) if remote else None
    found = _filtered(_table(_config(config, pins)).vestiges(families), label, prefix, local_port)
    if not json_:
        typer.echo(f"{'class':<8} {'substate':<9} {'local':<21} {'remote':<21} {'expires':>7} netns".rstrip())
    for vestige in found:
        typer.echo(json.dumps(as_json(vestige)) if json_ else _row(vestige))


@app.command()
def top(  # noqa: PLR0913, PLR0917 - each is an option
    config: ConfigFile = None,
    pins: PinsFolder = None,
    interval: Annotated[float, typer.Option(metavar="SECONDS", help="Between two looks, 0.1 to 3600.")] = 1.0,
    count: Annotated[int | None, typer.Option(min=1, metavar="N", help="End after so many; default never.")] = None,
    class_: Annotated[
        str | None, typer.Option("--class", metavar="CLASS", help="Lists of loopback, local or remote only.")
    ] = None,
    sort: Annotated[str, typer.Option(metavar="ORDER", help="Lists by sessions, growth or name.")] = "sessions",
) -> None:
    """Rates, and who has the most sessions, live; plain text where there is no terminal."""
    # rich, and prometheus_client: the other nouns do not need them
    from twctl.commands import terminal  # noqa: PLC0415
    from twctl.commands.screen import Choice  # noqa: PLC0415
    from twctl.commands.top import Order, Watch  # noqa: PLC0415

    if not 0.1 <= interval <= 3600:  # noqa: PLR2004 - a range of typer's would let nan through
        raise typer.BadParameter(f"{interval} is not between 0.1 and 3600", param_hint="--interval")
    labels = [each.label for each in Class]
    only = Class(labels.index(_one_of("--class", class_, labels))) if class_ else None
    choice = Choice(only, Order(_one_of("--sort", sort, list(Order))))
    show = terminal.live if terminal.is_terminal() else terminal.plain
    show(Watch(_config(config, pins).pins), choice, interval, count)


def _filtered(
    vestiges: Iterator[Vestige], label: str | None, prefix: Network | None, local_port: int | None
) -> Iterator[Vestige]:
    for vestige in vestiges:
        wanted = label in {None, vestige.class_.label} and local_port in {None, vestige.local_port}
        if wanted and (prefix is None or vestige.remote in prefix):
            yield vestige


def _row(vestige: Vestige) -> str:
    local, remote = host_port(vestige.local, vestige.local_port), host_port(vestige.remote, vestige.remote_port)
    ends = f"{vestige.expires_in:>6.1f}s"
    return f"{vestige.class_.label:<8} {vestige.substate:<9} {local:<21} {remote:<21} {ends} {vestige.netns}".rstrip()


def _one_of(option: str, value: str, allowed: Sequence[str]) -> str:
    if value not in allowed:
        raise typer.BadParameter(f"{value!r} is not one of {', '.join(allowed)}", param_hint=option)
    return value


def _network(text: str) -> Network:
    try:
        return ipaddress.ip_network(text)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--remote") from None


@app.command()
def blame(
    config: ConfigFile = None,
    pins: PinsFolder = None,
    by: Annotated[By | None, typer.Option("--by", help="Only owners, remote endpoints or local ports.")] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, metavar="N", help="Rows of each.")] = 10,
    *,
    json_: Json = False,
) -> None:
    """Who causes TIME_WAIT: most live sessions first, with entries since the start."""
    found = _table(_config(config, pins))
    names = Names(found)
    for i, each in enumerate([by] if by else By):
        rows = [names.row(each, tally) for tally in ranking(found, each, limit)]
        if json_:
            typer.echo("\n".join(json.dumps(row) for row in rows), nl=bool(rows))
        else:
            typer.echo("\n".join([*[""] * bool(i), *lines(each, rows)]))
    if by in {None, By.REMOTE}:
        _foresee(found, limit, json_=json_)


def _foresee(found: Table, limit: int, *, json_: bool) -> None:
    """How many local ports are left toward the remote endpoints with the most sessions."""
    from twctl.modes import headroom  # noqa: PLC0415 - the other nouns do not need it

    uses = headroom.worst(headroom.toward(found, ranking(found, By.REMOTE, limit)), limit, least=0.0)
    if json_:
        for use in uses:
            typer.echo(json.dumps({"by": "ports", **headroom.row(use)}))
    elif uses:
        typer.echo("\n".join(["", *headroom.lines(uses)]))


@app.command()
def classify(
    address: Annotated[str, typer.Argument(metavar="ADDRESS", help="IPv4 or IPv6 address of a peer.")],
    config: ConfigFile = None,
    netns: Annotated[str | None, typer.Option(metavar="NAME", help="Namespace below /run/netns.")] = None,
    *,
    json_: Json = False,
) -> None:
    """How near a peer is, and what decides it."""
    from twctl.routes.watcher import RouteWatcher  # noqa: PLC0415 - pyroute2 takes a while

    try:
        peer = ipaddress.ip_address(address)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="ADDRESS") from None
    with RouteWatcher(_config(config, None).classes, netns) as routes:
        found = routes.explain(peer)
    facts = {
        "address": str(peer),
        "class": found.class_.label,
        "prefix": str(found.prefix) if found.prefix else None,
        "source": found.source,
        "interface": found.interface,
        "gateway": str(found.gateway) if found.gateway else None,
    }
    typer.echo(json.dumps(facts) if json_ else "\n".join(f"{name:<10} {value or '-'}" for name, value in facts.items()))


@app.command()
def check(config: ConfigFile = None, pins: PinsFolder = None, *, json_: Json = False) -> None:
    """What this kernel and host allow; exit status 1 if observe cannot work."""
    from twctl.commands import check as module  # noqa: PLC0415

    failed = False
    for line in module.check(_config(config, pins).pins):
        failed |= line.verdict is module.Verdict.FAIL
        if json_:
            typer.echo(
                json.dumps({"what": line.what, "verdict": line.verdict, "reason": line.reason, "hint": line.hint})
            )
        else:
            typer.echo(f"{line.verdict:<5}{line.what:<11}{line.reason}{f' ({line.hint})' if line.hint else ''}")
    raise typer.Exit(failed)


@app.command()
def config(
    config: ConfigFile = None,
    *,
    json_: Json = False,
    template: Annotated[bool, typer.Option("--template", help="Print a file to begin with instead.")] = False,
) -> None:
    """The configuration in force, with the source of each value."""
    if template:
        from twctl.config import template as module  # noqa: PLC0415 - who installs needs it, once

        typer.echo(module.template(KEYS), nl=False)
        return
    rows = list(_effective(config).rows())
    if json_:
        typer.echo(json.dumps({name: {"value": value, "source": source} for name, value, source in rows}))
        return
    for name, value, source in rows:
        typer.echo(f"{name:<22} {json.dumps(value):<28} {source}")


@app.command()
def drain(
    config: ConfigFile = None,
    pins: PinsFolder = None,
    class_: Annotated[
        str | None, typer.Option("--class", metavar="CLASS", help="Only loopback, local or remote.")
    ] = None,
    older_than: Annotated[float, typer.Option(min=0, metavar="SECONDS", help="Only sessions this old.")] = 0.0,
) -> None:
    """Destroy TIME_WAIT sockets now: nearest class first, oldest first."""
    from twctl.linux.sockdiag import SockDiag  # noqa: PLC0415
    from twctl.modes import truncate  # noqa: PLC0415 - the nouns do not need it

    label = _one_of("--class", class_, [each.label for each in Class]) if class_ else None
    found = Table(_config(config, pins).pins / "current", writable=True)
    diags = {index: SockDiag(name or None) for index, name in found.reachable().items()}
    with found.exclusive():
        reaper = truncate.Reaper(found, diags, Reason.DRAINED)
        drained = truncate.drain(reaper, [each for each in Class if label in {None, each.label}], older_than)
    typer.echo(f"drained {sum(drained.values())}: " + ", ".join(f"{each.label} {n}" for each, n in drained.items()))


@app.command()
def release(config: ConfigFile = None, pins: PinsFolder = None) -> None:
    """Remove everything that twctl left in the kernel."""
    settings = _config(config, pins)
    left = [] if Pins(settings.pins).locked() else _restore(settings.pins)
    for line in left:
        typer.echo(f"twctl: {line}", err=True)
    removed = Pins(settings.pins).release()
    typer.echo(f"removed {settings.pins}" if removed else f"nothing to remove at {settings.pins}")


def _restore(pins: Path) -> list[str]:
    """Sysctls first, then the guard: never a host without TIME_WAIT sockets and without a guard."""
    left = journal_of(pins).restore()
    with contextlib.suppress(TwctlError):
        found = Table(pins / "current")
        if found.guard:
            from twctl.modes import guard  # noqa: PLC0415 - the nouns do not need it

            left += guard.remove(found.enrolments(), pins / "current")
    return left


def _print_version(asked: bool) -> None:  # noqa: FBT001 - a callback of Typer
    if asked:
        typer.echo(f"twctl {__version__}")
        raise typer.Exit


@app.callback()
def options(
    *,
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version.")
    ] = False,
) -> None:
    """See what TIME_WAIT does on this host. Nouns read, verbs change."""


def main() -> None:
    """Run a command: one line on standard error and exit status 1 if it fails, 2 if it was called wrongly."""
    try:
        app()
    except TwctlError as error:
        typer.echo(f"twctl: {error}", err=True)
        sys.exit(1)
    except BrokenPipeError:
        # The reader of `twctl table` has seen enough; Python would complain once more when it flushes.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)

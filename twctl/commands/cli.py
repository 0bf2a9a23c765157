"""The command line. Nouns read (status, table, top, blame, advise...), verbs change (run, drain...)."""

import dataclasses
import json
import os
import sys
from collections.abc import Iterable
from typing import Annotated

import typer

from twctl.classes import Class
from twctl.commands import config as configuration
from twctl.commands import table
from twctl.commands.in_force import in_force
from twctl.commands.options import (
    ClassLabel,
    ConfigFile,
    Family,
    Json,
    LocalPort,
    OwnerName,
    PinsFolder,
    Remote,
    Version,
    address_of,
    class_of,
    family_of,
    namespace_of,
    network_of,
    one_of,
)
from twctl.commands.reach import as_root, in_sight, pins_of, pins_to_release, table_of
from twctl.config.config import load
from twctl.config.config import pins_of as pinned_at
from twctl.config.keys import KEYS, Mode, Probe
from twctl.linux.signals import put_off
from twctl.table.tallies import By

app = typer.Typer(
    help="See what TIME_WAIT does on this host. Nouns read, verbs change.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print(lines: Iterable[str]) -> None:
    for line in lines:
        typer.echo(line)


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
    as_root()
    given: dict[str, object] = {"mode": mode, "listen": listen, "netns": netns, "probe": probe}
    given |= {"pins": str(pins) if pins else None, "all_netns": all_netns, "force": force}
    options = {name: value for name, value in given.items() if value not in (None, False, [])}  # '' is refused
    in_sight(pinned_at(config, options))
    request = json.dumps({"file": str(config) if config else None, "options": options, "release": release})
    with put_off():  # until the daemon hears them
        os.execv(sys.executable, [sys.executable, "-m", "twctl.daemon.main", request])  # noqa: S606 - our own interpreter


@app.command()
def status(config: ConfigFile = None, pins: PinsFolder = None, *, json_: Json = False) -> None:
    """Counts by class, table against kernel, and what the other modes would have freed."""
    from twctl.commands import status as module  # noqa: PLC0415 - the other nouns do not need it

    facts = module.status(*table_of(config, pins))
    typer.echo(json.dumps(facts) if json_ else module.text(facts))


def _filter(class_: str | None, family: str | None, remote: str | None, local_port: int | None) -> table.Filter:
    return table.Filter(class_of(class_), family_of(family), network_of(remote), local_port)


@app.command("table")
def table_(  # noqa: PLR0913, PLR0917 - each is an option
    config: ConfigFile = None,
    pins: PinsFolder = None,
    class_: ClassLabel = None,
    family: Family = None,
    remote: Remote = None,
    local_port: LocalPort = None,
    *,
    json_: Json = False,
) -> None:
    """Every live session, a line each, with the time until it goes."""
    wanted = _filter(class_, family, remote, local_port)
    pinned, found = table_of(config, pins)
    truncating = found.config if found.daemon and found.config.mode is Mode.TRUNCATE else None
    vestiges = table.sessions(pinned, wanted, truncating)
    _print(table.json_lines(vestiges) if json_ else table.lines(vestiges))


@app.command()
def events(  # noqa: PLR0913, PLR0917 - each is an option
    config: ConfigFile = None,
    pins: PinsFolder = None,
    class_: ClassLabel = None,
    family: Family = None,
    remote: Remote = None,
    local_port: LocalPort = None,
    owner: OwnerName = None,
    *,
    json_: Json = False,
) -> None:
    """Entries and ends as they happen, a line each, until SIGINT; then how many were lost."""
    from twctl.commands import events as module  # noqa: PLC0415 - the other nouns do not listen

    wanted = module.Wanted(_filter(class_, family, remote, local_port), owner)
    typer.echo(module.follow(pins_of(config, pins) / "current", wanted, json_=json_), err=True)


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
    from twctl.commands.rankings import Order  # noqa: PLC0415
    from twctl.commands.screen import Choice  # noqa: PLC0415
    from twctl.commands.top import TableView  # noqa: PLC0415

    if not 0.1 <= interval <= 3600:  # noqa: PLR2004 - a range of typer's would let nan through
        raise typer.BadParameter(f"{interval} is not between 0.1 and 3600", param_hint="--interval")
    only = class_of(class_)
    choice = Choice(only, Order(one_of("--sort", sort, list(Order))))
    live = terminal.is_terminal()
    show = terminal.live if live else terminal.plain
    show(TableView(pins_of(config, pins), waits=live), choice, interval, count)


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
    from twctl.commands import blame as module  # noqa: PLC0415 - the other nouns need neither names nor sockets

    _print(module.report(*table_of(config, pins), by, limit, json_=json_))


@app.command()
def advise(config: ConfigFile = None, pins: PinsFolder = None, *, json_: Json = False) -> None:
    """What is wrong, the evidence, what to do and what that brings here; most important first."""
    from twctl.commands import advise as module  # noqa: PLC0415 - the other nouns need no rules

    _print(module.report(*table_of(config, pins), json_=json_))


@app.command()
def classify(
    address: Annotated[str, typer.Argument(metavar="ADDRESS", help="IPv4 or IPv6 address of a peer.")],
    config: ConfigFile = None,
    netns: Annotated[str | None, typer.Option(metavar="NAME", help="Namespace below /run/netns.")] = None,
    *,
    json_: Json = False,
) -> None:
    """How near a peer is, and what decides it."""
    from twctl.commands import classify as module  # noqa: PLC0415 - pyroute2 takes a while

    peer, namespace = address_of(address), namespace_of(netns)
    found = module.explain(peer, in_force(config, {}).config, namespace)
    facts = module.facts(peer, found)
    typer.echo(json.dumps(facts) if json_ else module.text(facts))


@app.command()
def check(config: ConfigFile = None, pins: PinsFolder = None, *, json_: Json = False) -> None:
    """What this kernel and host allow; exit status 1 if observe cannot work."""
    from twctl.commands import check as module  # noqa: PLC0415

    failed = False
    folder = load(config, {"pins": pins}).config.pins
    as_root()
    for line in module.check(folder):
        failed |= line.verdict is module.Verdict.FAIL
        typer.echo(json.dumps(dataclasses.asdict(line)) if json_ else str(line))
    raise typer.Exit(failed)


@app.command("config")
def config_(
    config: ConfigFile = None,
    pins: PinsFolder = None,
    *,
    json_: Json = False,
    template: Annotated[bool, typer.Option("--template", help="Print a file to begin with instead.")] = False,
) -> None:
    """The configuration of the running daemon, else of the next start, with the source of each value."""
    if template:
        from twctl.config import template as module  # noqa: PLC0415 - who installs needs it, once

        typer.echo(module.template(KEYS), nl=False)
        return
    found = in_force(config, {"pins": pins})
    in_sight(found.config.pins)
    _print([configuration.as_json(found)] if json_ else configuration.lines(found))


@app.command()
def drain(  # noqa: PLR0913, PLR0917 - each is an option
    config: ConfigFile = None,
    pins: PinsFolder = None,
    class_: ClassLabel = None,
    older_than: Annotated[
        float | None, typer.Option(min=0, max=86_400, metavar="SECONDS", help="Only sessions this old.")
    ] = None,
    remote: Remote = None,
    local_port: LocalPort = None,
    owner: OwnerName = None,
    *,
    all_: Annotated[bool, typer.Option("--all", help="Every session, instead of a filter.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Destroy nothing, say what would be.")] = False,
    json_: Json = False,
) -> None:
    """Destroy TIME_WAIT sockets now: nearest class first, oldest first."""
    from twctl.commands import reclaim  # noqa: PLC0415 - the nouns do not need it

    only, network = class_of(class_), network_of(remote)
    if all_ == any(each is not None for each in (only, older_than, network, local_port, owner)):
        raise typer.BadParameter("give either --all or filters: all that they choose is destroyed", param_hint="--all")
    classes = [each for each in Class if only in {None, each}]
    wanted = reclaim.Wanted(classes, older_than or 0.0, network, local_port, owner, dry_run)
    folder, found = pins_of(config, pins), in_force(config, {"pins": pins})
    guarding = found.from_daemon and found.config.mode is Mode.VESTIGIAL
    typer.echo(reclaim.told(reclaim.drain_now(folder, wanted, guarding=guarding), dry=dry_run, json_=json_))
    if guarding:
        typer.echo("the daemon runs in mode vestigial: its sessions have no sockets that could be destroyed", err=True)


@app.command()
def release(config: ConfigFile = None, pins: PinsFolder = None) -> None:
    """Remove everything that twctl left in the kernel."""
    from twctl.commands import reclaim  # noqa: PLC0415 - the nouns do not need it

    folder = pins_to_release(config, pins)
    removed, complaints = reclaim.release(folder)
    for line in complaints:
        typer.echo(f"twctl: {line}", err=True)
    typer.echo(f"removed {folder}" if removed else f"nothing to remove at {folder}")


@app.callback()
def options(*, version: Version = False) -> None:
    """See what TIME_WAIT does on this host. Nouns read, verbs change."""

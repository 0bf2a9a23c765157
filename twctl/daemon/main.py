"""The daemon of `twctl run`: `run` is the boot order, from top to bottom; the loop is what happens afterwards."""

import contextlib
import dataclasses
import json
import logging
import os
import resource
import sys
from collections.abc import Callable
from pathlib import Path

from twctl.config.config import Effective, load, pins_of
from twctl.config.keys import Mode
from twctl.daemon import rights, server
from twctl.daemon.facts import FactsAtHand
from twctl.daemon.loop import Heartbeat, Task, loop, signals
from twctl.daemon.metrics import registry_of
from twctl.daemon.namespaces import Namespaces
from twctl.daemon.page import page
from twctl.daemon.server import Listener, Server
from twctl.daemon.start import Fresh, Sysctls, load_guard, put_back, take_over_or_load
from twctl.daemon.upkeep import Leaving
from twctl.daemon.work import start_work
from twctl.errors import TwctlError
from twctl.linux import capabilities
from twctl.linux.systemd import Notifier, Reporting
from twctl.modes import feasible
from twctl.modes.guard import ours_at
from twctl.table.pins import Pins
from twctl.table.published import publish
from twctl.table.sources import EARLIER_GUARD

log = logging.getLogger("twctl")

# What the service manager is told besides, while an earlier configuration is in force than the last one that was given.
REFUSED = "; a later configuration was refused"
_DOING = {Mode.OBSERVE: "observing", Mode.TRUNCATE: "truncating", Mode.VESTIGIAL: "guarding"}


def run(
    effective: Effective,
    reread: Callable[[int], Effective | None],
    notifier: Notifier,
    in_force: Callable[[], None],
    *,
    went_back: bool = False,
) -> Effective | None:
    """Do what the mode says until SIGINT or SIGTERM (returns None), or until SIGHUP brings another configuration.

    reread: reads the configuration again, while we listen on this port; None where it cannot be used, and then what was
    in force stays. notifier, in_force: hear of it when all is in force, and not before. went_back: a later one failed.

    :raises TwctlError: if something that is needed cannot be had; then no table that was loaded for it is left pinned.
    """
    config = effective.config
    with contextlib.ExitStack() as undo, signals() as asked:
        capabilities.restore()
        pins = Pins(config.pins)
        pins.open()
        undo.callback(pins.unlock)
        fresh = undo.enter_context(Fresh(pins))
        sysctls = undo.enter_context(Sysctls(config.pins))
        listener = Listener(config.listen, config.tls)
        undo.callback(listener.close)
        ours = ours_at(pins.root)
        sysctls.refuse_lost(ours)
        table = take_over_or_load(pins, config, ours, lambda: sysctls.put_back(strict=True))
        if waits := config.mode is Mode.VESTIGIAL and table.guard == EARLIER_GUARD:
            config = dataclasses.replace(config, mode=Mode.OBSERVE)
        sysctls.leave_only(config)
        if config.mode is Mode.VESTIGIAL:
            load_guard(table, pins.current)
        leaving = Leaving(table, ours, config) if table.guard and config.mode is not Mode.VESTIGIAL else None
        if not leaving:
            table.set_lives(config.time_wait, config.fin_wait2)
            table.set_reuse_age(config.reuse_age)
        namespaces = Namespaces(table, pins.current, config, sysctls.journal, ours)
        undo.callback(namespaces.close)
        publish(table, effective.published())
        work = start_work(table, namespaces, config, leaving, undo)
        rights.give_up(config, pins)
        capabilities.lower(pins.current / "maps" / "meta")
        heartbeat, facts = Heartbeat(), FactsAtHand(table, work, config)
        serving = Server(
            listener,
            registry_of(table, work, config, listener.ended),
            heartbeat.healthy,
            lambda private: page(facts.read(private=private, healthy=heartbeat.healthy())),
        )
        undo.callback(serving.close)
        doing = f"{_DOING[config.mode]} with the {table.probe} probe, metrics on port {listener.port}"
        if leaving:
            doing += f", an earlier guard for {leaving.seconds:.0f} s" + ", then guarding" * waits
        log.info("%s", doing)
        in_force()
        fresh.keep()
        notifier.ready(doing + REFUSED * went_back)
        tasks: list[Task] = [heartbeat, *facts.tasks, *work.tasks()]
        tasks += [Reporting(notifier)] if notifier.watchdog else []
        following = loop(
            asked,
            list(work.sources()),
            tasks,
            lambda: _reread_and_tell(lambda: reread(listener.port), notifier, doing),
            lambda: effective if waits and leaving and leaving.over else None,
        )
        if following:
            sysctls.hand_over()
            return following
        notifier.stopping("stopping")
    log.info("stopped; the probes go on, 'twctl release' removes them")
    return None


def _reread_and_tell(reread: Callable[[], Effective | None], notifier: Notifier, doing: str) -> Effective | None:
    """Read the configuration again, and tell the service manager where it cannot be used and all stays as it was."""
    notifier.reloading()
    following = reread()
    if following is None:
        notifier.ready(doing + REFUSED)
    return following


def read_again(file: Path | None, options: dict[str, object], pins: Path, port: int) -> Effective | None:
    """Read the configuration again; None, and one line, if it is bad, cannot be had or has other pins.

    port: what is listened on now.
    """
    try:
        found = load(file, options)
        if found.config.pins != pins:  # no start has these
            log.error("the configuration stays as it was: pins is %s until twctl is started anew", pins)
            return None
        rights.refuse(found.config)
        feasible.refuse(found.config)
        server.refuse(found.config.listen, found.config.tls, port)
    except TwctlError as error:
        log.error("the configuration stays as it was: %s", error)  # noqa: TRY400 - one line, no traceback
        return None
    return found


def _run_to_the_end(file: Path | None, options: dict[str, object], notifier: Notifier) -> Path:
    """Run with one configuration after the other; returns their pins.

    One that follows and fails before it is in force, where this could not be told beforehand, gives way to the one
    before it.

    :raises TwctlError: if one cannot run; then the sysctls are put back, also those that an earlier daemon left.
    """
    try:
        effective: Effective | None = (first := load(file, options))
        pins = first.config.pins
        rights.refuse(first.config)
        feasible.refuse(first.config)
        earlier, went_back = list[Effective](), False
        while effective:
            try:
                following = run(
                    effective,
                    lambda port: read_again(file, options, pins, port),
                    notifier,
                    earlier.clear,
                    went_back=went_back,
                )
                earlier, effective, went_back = [effective], following, False
            except TwctlError as error:
                if not earlier:
                    raise
                log.error("the configuration goes back to what it was: %s", error)  # noqa: TRY400 - one line
                effective, went_back = earlier.pop(), True
    except TwctlError:
        put_back(pins_of(file, options))
        raise
    return pins


def main() -> int:
    """Run in a process that `twctl run` became: without the command line's library, which is 8 MB of its own.

    The argument is JSON: the configuration file (or null), the command line's options, whether to release at the end.
    """
    request = json.loads(sys.argv[1])
    notifier = Notifier(os.environ)
    logging.basicConfig(level=logging.INFO, format="twctl: %(message)s", stream=sys.stderr)
    file = Path(request["file"]) if request["file"] else None
    # Each network namespace takes up to 16 descriptors. The limit can be raised: nothing here calls select(2).
    with contextlib.suppress(
        OSError, ValueError
    ):  # a sandbox may refuse; then fewer namespaces fit, and a line says so
        resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    try:
        pins = _run_to_the_end(file, request["options"], notifier)
    except TwctlError as error:
        notifier.status(str(error))
        log.error("%s", error)  # noqa: TRY400 - one line, no traceback
        return error.of_service if notifier.is_there else error.status
    if request.get("release"):
        options = ["--pins", str(pins)] + (["--config", str(file)] if file else [])
        command = [sys.executable, "-m", "twctl", "release", *options]
        os.execv(sys.executable, command)  # noqa: S606 - our own interpreter
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""The landing page: one HTML document, complete in itself, without a script, for phones and desktops, light and dark.

Whatever stands in it is escaped, unless `_tag` has made it.
"""

import base64
import hashlib
import html
from collections.abc import Iterable, Iterator

from twctl import __version__
from twctl.classes import Class
from twctl.daemon.facts import Facts
from twctl.daemon.warnings import ports_left, warnings
from twctl.modes.headroom import LEAST, Use
from twctl.table.looks import Rates

REFRESH_SECONDS = 10
MODES = {
    "observe": "shows TIME_WAIT and changes nothing",
    "truncate": "ends TIME_WAIT sockets once their class's time is over",
    "vestigial": "keeps a record instead of each TIME_WAIT socket",
}
STYLE = """
:root { color-scheme: light dark; --line: #8886; --soft: #8882; --warn: #c60 }
body { font: 1rem/1.45 system-ui, sans-serif; max-width: 46rem; margin: 0 auto; padding: 1rem; overflow-wrap: anywhere }
h1 { font-size: 1.5rem; margin: 0 }
h2 { font-size: 1.1rem; margin: 1.8rem 0 .4rem }
p { margin: .3rem 0 }
table { width: 100%; border-collapse: collapse; font-variant-numeric: tabular-nums }
th, td { padding: .3rem .2rem; border-bottom: 1px solid var(--line); text-align: right; vertical-align: bottom }
th:first-child, td:first-child { text-align: left; font-weight: 600 }
th { font-size: .8rem; overflow-wrap: normal }
ul { margin: 0; padding: 0; list-style: none }
li { margin: .5rem 0; padding: .5rem .7rem; background: var(--soft) }
#advice li { border-left: .3rem solid var(--warn) }
meter { width: 100%; height: .7rem }
nav a { margin-right: 1rem }
footer { margin-top: 1.8rem; font-size: .85rem; opacity: .8 }
@media (max-width: 30rem) { body { padding: .6rem } table { font-size: .85rem } th { font-size: .7rem } }
"""
# Nothing is fetched, nothing runs, and no other page shows this one in a frame.
_POLICY = (
    f"default-src 'none'; style-src 'sha256-{base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()}'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = (
    ("Content-Type", "text/html; charset=utf-8"),
    ("Content-Security-Policy", _POLICY),
    ("X-Content-Type-Options", "nosniff"),
    ("Referrer-Policy", "no-referrer"),
    ("Cache-Control", "no-store"),
)


class Html(str):
    """Markup; any other text is escaped where it comes into some."""

    __slots__ = ()


def _tag(name: str, *inside: str, **attributes: str) -> Html:
    words = "".join(f' {key}="{html.escape(value)}"' for key, value in attributes.items())
    text = "".join(each if isinstance(each, Html) else html.escape(each) for each in inside)
    return Html(f"<{name}{words}>{text}</{name}>")


def page(facts: Facts) -> str:
    """All of it."""
    head = (
        Html('<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'),
        Html(f'<meta http-equiv="refresh" content="{REFRESH_SECONDS}">'),
        _tag("title", f"twctl: {facts.mode}"),
        _tag("style", Html(STYLE)),
    )
    body = (
        _tag("h1", f"twctl: {facts.mode}"),
        _tag("p", f"Mode {facts.mode} {MODES[facts.mode]}."),
        _section("advice", "Advice", *_advice(facts)),
        _section("sessions", "Sessions in TIME_WAIT", *_sessions(facts)),
        _section("destinations", "Worst destinations", *_destinations(facts)),
        _section("owners", "Owners", *_owners(facts)),
        _tag("nav", _tag("h2", "More"), _tag("a", "Metrics", href="/metrics"), _tag("a", "Health", href="/healthy")),
        _tag("p", "On the host: ", *_commands("twctl advise", "twctl top", "twctl blame", "twctl status")),
        _tag(
            "footer", f"twctl {__version__}. Rates are those of the last seconds. Read anew every {REFRESH_SECONDS} s."
        ),
    )
    return f'<!doctype html>\n<html lang="en">{_tag("head", *head)}{_tag("body", *body)}</html>\n'


def _section(name: str, title: str, *inside: str) -> Html:
    return _tag("section", _tag("h2", title), *inside, id=name)


def _commands(*lines: str) -> Iterator[str]:
    for i, line in enumerate(lines):
        yield ", " if i else ""
        yield _tag("code", line)


def _list(rows: Iterable[Html]) -> Html:
    return _tag("ul", *rows)


def _advice(facts: Facts) -> Iterator[Html]:
    found = warnings(facts)
    yield _list(_tag("li", line) for line in found) if found else _tag("p", "Nothing to warn of.")


def _sessions(facts: Facts) -> Iterator[Html]:
    rows = [_row("th", "class", "sessions", "entered/s", "ended/s", "full", "time")]
    for class_ in Class:
        numbers = f"{facts.look.sessions[class_]:,}", *_rates(facts.rates, class_)
        rows.append(
            _row("td", class_.label, *numbers, f"{facts.look.full[class_]:.0%}", f"{facts.time_wait[class_]:g} s")
        )
    every = f"{sum(facts.look.sessions.values()):,}", *_rates(facts.rates, *Class)
    yield _tag("table", *rows, _row("td", "all", *every, "", ""))
    kernel = "an unknown number of" if facts.kernel_sockets is None else f"{facts.kernel_sockets:,}"
    yield _tag("p", f"The kernel has {kernel} TIME_WAIT sockets.")


def _row(name: str, *cells: str) -> Html:
    return _tag("tr", *(_tag(name, cell) for cell in cells))


def _rates(rates: Rates, *classes: Class) -> tuple[str, str]:
    """Entered and ended a second; without an earlier look neither is known."""
    labels = {class_.label for class_ in classes}
    entered, ended = (
        sum(rate for (name, *label), rate in rates.items() if name == which and label[0] in labels)
        for which in ("entered", "ended")
    )
    return (_rate(entered), _rate(ended)) if rates else ("-", "-")


def _rate(number: float) -> str:
    return f"{number:,.0f}" if number >= 10 or not number else f"{number:.1f}"  # noqa: PLR2004 - two digits


def _destinations(facts: Facts) -> Iterator[Html]:
    if facts.uses is None:
        yield _tag("p", "Nobody looks: ", _tag("code", "[blame] destinations"), " is 0.")
    elif facts.uses:
        yield _list(_destination(facts, use) for use in facts.uses)
    else:
        yield _tag("p", f"Toward no destination {LEAST:.0%} of the local ports are held.")
    if facts.uses and not facts.private:
        yield _hidden("Addresses")


def _destination(facts: Facts, use: Use) -> Html:
    netns = f", network namespace {use.netns}" if use.netns else ""
    named = (_tag("b", facts.where(use)), f" from {use.local}{netns}") if facts.private else ()
    held = f"{use.ratio:.0%} of {use.ports:,} local ports: {use.time_wait:,} TIME_WAIT, {use.live:,} live"
    gauge = Html(f'<meter value="{min(1.0, use.ratio):.3f}" low="0.5" high="0.8" optimum="0"></meter>')
    return _tag("li", *named, gauge, f"{held}, {_rate(use.rate)} more a second; {ports_left(facts, use)}")


def _owners(facts: Facts) -> Iterator[Html]:
    if not facts.private:
        yield _hidden("Owners")
    elif facts.owners:
        rows = (_row("td", name, f"{entered:,}") for name, entered in facts.owners)
        yield _tag("table", _row("th", "with the most entries", "entered"), *rows)
    else:
        yield _tag("p", "None has entered a session.")


def _hidden(what: str) -> Html:
    ca, told = (
        _tag("code", "[tls] client_ca"),
        f"{what} are told only over a loopback address, asked for by its own name, or with ",
    )
    return _tag("p", told, ca, ".")

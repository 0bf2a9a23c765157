"""What `twctl top` shows, laid out: from a view and a size to lines of text with styles, and what each key changes."""

import textwrap
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from twctl.classes import Class
from twctl.commands.rankings import SUBJECTS, Order, Ranking, Reading, Subject, ranking
from twctl.commands.top import View
from twctl.table.counters import ACTIONS, CLOSES, Reason
from twctl.table.looks import Look

Span = tuple[str, str]  # text and style, in rich's words
Line = list[Span]

TITLE, ALARM = "bold reverse", "bold red"
GAP = "  "
SESSIONS, GROWTH = 10, 9  # columns
ROOMY = 24  # lines from which some are left empty
WIDE = 76  # columns from which there is room for all numbers
WIDER = 112  # for all lists beside each other
PLAIN_ROWS = 10
SHORT = 10  # a second, from which a rate has no decimal
CLASSES: tuple[Class | None, ...] = (None, *Class)
KEYS = {"s": Order.SESSIONS, "g": Order.GROWTH, "n": Order.NAME}
HELP = """\
s  lists by sessions, most first
g  lists by growth: what gained the most since the reading before
n  lists by name: those with the most sessions, where rows keep their places
c  lists of all classes, or of one: loopback, local, remote
l  the lists that have room, or one in full width
space  stop, and go on
q, Ctrl-C  quit

entered/s  sessions that came into TIME_WAIT, or orphaned FIN_WAIT2
adopted/s  taken over from the kernel's list, entry not seen
restarted/s  timers that started anew
ended/s  sessions that are over, by why
connect()  how long a call looks for a local port, when it was measured last
closed/s  connections that ended without TIME_WAIT
owner  the unit or cgroup that made the socket, and its user; unknown: taken over
full  of the capacity; beyond it the oldest are evicted
A large table is read in parts, so that counting takes 12 % of a CPU:
the line above the lists says how old they are.\
"""


@dataclass(frozen=True)
class Choice:
    """What a user wants to see. alone: the place of the only list; None: those that have room."""

    class_: Class | None = None
    order: Order = Order.SESSIONS
    alone: int | None = None
    paused: bool = False
    help: bool = False

    def after(self, key: str) -> "Choice":
        """What it is when a key was pressed."""
        if self.help:
            return replace(self, help=False)
        if key in KEYS:
            return replace(self, order=KEYS[key])
        if key == "c":
            return replace(self, class_=CLASSES[(CLASSES.index(self.class_) + 1) % len(CLASSES)])
        if key == "l":
            lists = (None, *range(len(SUBJECTS)))
            return replace(self, alone=lists[(lists.index(self.alone) + 1) % len(lists)])
        if key == " ":
            return replace(self, paused=not self.paused)
        return replace(self, help=key in {"h", "?"})

    @property
    def classes(self) -> tuple[Class, ...]:
        """Whose sessions the lists count."""
        return tuple(Class) if self.class_ is None else (self.class_,)


def screen(view: View, choice: Choice, width: int, height: int) -> list[Line]:
    """Fill a terminal: exactly `height` lines of at most `width` characters, keys on the last."""
    body = _help() if choice.help else _body(view, choice, width, height - 1)
    lines = [*body, *[[] for _ in range(height)]][: height - 1]
    return [cut(line, width) for line in [*lines, _keys(choice)][-height:]]


def block(view: View, choice: Choice, width: int) -> str:
    """The same without a terminal: as long as it is."""
    lines = [cut(line, width) for line in _body(view, choice, width, None)]
    return "".join("".join(text for text, _ in line).rstrip() + "\n" for line in lines)


def cut(line: Line, width: int) -> Line:
    """As much of a line as fits."""
    result: Line = []
    for text, style in line:
        result.append((text[:width], style))
        width -= len(text[:width])
    return result


def _keys(choice: Choice) -> Line:
    if choice.help:
        return [("any key: back", TITLE)]
    line: Line = []
    for key, word in (("q", "quit"), *((key, str(order)) for key, order in KEYS.items())):
        line += [(key, "bold"), (f" {word}", "underline" if KEYS.get(key) is choice.order else ""), (GAP, "")]
    for key, word in (("c", "class"), ("l", "lists"), ("space", "go on" if choice.paused else "stop")):
        line += [(key, "bold"), (f" {word}{GAP}", "")]
    return [*line, ("?", "bold"), (" help", "")]


def _help() -> list[Line]:
    return [[("twctl top", "bold")], [], *([(text, "")] for text in HELP.splitlines())]


def _body(view: View, choice: Choice, width: int, height: int | None) -> list[Line]:
    head = [_header(view, choice, width)]
    if view.look is None:
        why: list[Line] = [[(line, ALARM)] for line in textwrap.wrap(view.state, width)]
        return [*head, [], *why, [("waiting for a table", "")]]
    empty: list[Line] = [[]] if height is None or height >= ROOMY - 1 else []
    above = [
        *head,
        *empty,
        *_classes(view, view.look, width),
        *empty,
        *_ends(view, view.look, width),
        *_others(view, view.look),
        *empty,
    ]
    rows = PLAIN_ROWS if height is None else height - len(above) - 2
    shown = _shown(choice, width)
    lists = _lists(view, choice, shown, width, rows)
    if height is not None:
        return above + lists
    others = [each for each in SUBJECTS if each not in shown and choice.alone is None]  # there is no key to see them
    below = [*empty, *_lists(view, choice, others, width, rows)[1:]] if others and view.readings[0] else []
    return above + lists + below + empty


def _shown(choice: Choice, width: int) -> tuple[Subject, ...]:
    if choice.alone is not None:
        return SUBJECTS[choice.alone : choice.alone + 1]
    return SUBJECTS if width >= WIDER else SUBJECTS[:2]


def _header(view: View, choice: Choice, width: int) -> Line:
    clock = time.strftime("%H:%M:%S", time.localtime(view.clock)) + (" STOPPED" if choice.paused else "")
    state = view.state if view.look else ""
    down = state.endswith("no daemon running")
    space = width - len("twctl top") - len(GAP) - len(state) - len(clock)
    return [("twctl top", "bold"), (GAP + state, ALARM if down else ""), (" " * max(2, space), ""), (clock, "bold")]


def _classes(view: View, look: Look, width: int) -> Iterator[Line]:
    def row(label: str, classes: Iterable[Class], full: str) -> list[str]:
        chosen = list(classes)
        sessions = f"{sum(look.sessions[class_] for class_ in chosen):,}"
        moved = [_moved(view, name, chosen) for name in ("entered", "ended", "adopted", "restarted")]
        return [label, sessions, full, *map(per_second, moved)]

    rows = [["class", "sessions", "full", "entered/s", "ended/s", "adopted/s", "restarted/s"]]
    rows += [row(class_.label, [class_], f"{look.full[class_]:.1%}") for class_ in Class]
    rows.append(row("all", Class, ""))
    yield from _columns(rows, (9, 12, 8, 11, 11, 11, 13), width)


def _ends(view: View, look: Look, width: int) -> Iterator[Line]:
    """Ends by reason; where not all have room, those that there were."""
    reasons = [reason.name.lower() for reason in Reason]
    if width < WIDE:
        had = {name: sum(look.counters["ended", class_.label, name] for class_ in Class) for name in reasons}
        reasons.sort(key=lambda name: not had[name])
    rows = [["ended/s", *reasons]]
    rows += [
        [class_.label, *(per_second(view.rates.get(("ended", class_.label, name))) for name in reasons)]
        for class_ in Class
    ]
    yield from _columns(rows, (9, *(max(8, len(name) + 1) for name in reasons)), width)


def _moved(view: View, name: str, classes: Iterable[Class]) -> float | None:
    """Events a second of some classes, all reasons together."""
    labels = {class_.label for class_ in classes}
    found = [rate for key, rate in view.rates.items() if key[0] == name and key[1] in labels]
    return sum(found) if found else None


def _columns(rows: Sequence[Sequence[str]], widths: Sequence[int], width: int) -> Iterator[Line]:
    """A title and rows: the first word to the left, the others to the right; the last that do not fit are left out."""
    fit = max(1, sum(sum(widths[: i + 1]) <= width for i in range(len(widths))))
    for i, row in enumerate(rows):
        cells = [f"{row[0]:<{widths[0]}}", *(f"{text:>{widths[j]}}" for j, text in enumerate(row[1:fit], 1))]
        text = "".join(cells)
        yield [(text.ljust(width), TITLE) if i == 0 else (text, "")]


def _others(view: View, look: Look) -> Iterator[Line]:
    """What is one line each: other closes, the guard where there is one, and what was lost if anything was."""
    closes = " ".join(f"{how} {per_second(view.rates.get(('closed', how)))}" for how in CLOSES)
    yield [(f"closed/s: {closes}", "")]
    if acted := look.of("guard"):
        done = [name for name in ACTIONS if acted[name]]
        rates = ", ".join(f"{name} {per_second(view.rates.get(('guard', name)))}" for name in done)
        yield [(f"guard/s: {rates or 'nothing to do yet'}", "")]
    if look.took:
        took = ", ".join(f"{1e6 * seconds:,.1f} us ({outcome})" for outcome, seconds in look.took.items())
        yield [(f"connect() looks for a port: {took}", "")]
    if lost := {why: count for why, count in look.of("dropped").items() if count}:
        yield [("LOST: " + ", ".join(f"{why} {count:,}" for why, count in lost.items()), ALARM)]


def _lists(view: View, choice: Choice, subjects: Sequence[Subject], width: int, rows: int) -> list[Line]:
    now, before = view.readings
    if now is None or view.look is None:
        return [[(f"reading the table: {view.progress:.0%}", "")]]
    rankings = [ranking(each, now, before, choice.classes, choice.order, max(0, rows)) for each in subjects]
    whose = "" if choice.class_ is None else f" of class {choice.class_.label}"
    sessions = sum(now.sessions[class_] for class_ in choice.classes)
    lines: list[Line] = [
        [(f"of {sessions:,} sessions{whose}{_age(now, view.look)}{_undercounts(subjects, rankings)}", "")]
    ]
    growth = width >= WIDE or len(subjects) == 1
    widths = _name_widths(subjects, width, SESSIONS + GROWTH * growth)
    for i in range(-1, max(len(each.rows) for each in rankings)):
        cells: Line = []
        for subject, each, name in zip(subjects, rankings, widths, strict=True):
            text = _title(subject, name, growth=growth) if i < 0 else _cell(each, i, name, growth=growth)
            cells += [(GAP, "")] * bool(cells) + [(text, TITLE if i < 0 else "")]
        lines.append(cells)
    return lines


def _age(now: Reading, look: Look) -> str:
    """How old a reading is, and over how long it went, if that can be told from now."""
    took, ago = now.ended - now.began, look.at - now.ended
    return (f", read in {took:.0f} s," if took >= 1 else ", read") + (f" {ago:.0f} s ago" if round(ago) else " now")


def _undercounts(subjects: Sequence[Subject], rankings: Sequence[Ranking]) -> str:
    """Where a count may be too low, and by how many."""
    found = zip(subjects, rankings, strict=True)
    return "".join(f"; {subject.title}: up to {each.undercount:,} more" for subject, each in found if each.undercount)


def _name_widths(subjects: Sequence[Subject], width: int, numbers: int) -> list[int]:
    """Room for names: what most of them need, as far as it goes, and the rest for long ones."""
    left = width - len(subjects) * numbers - (len(subjects) - 1) * len(GAP)
    widths = dict.fromkeys((subject.title for subject in subjects), 0)
    for most in ("usual", "width"):
        for i, subject in enumerate(sorted(subjects, key=lambda each: each.width - each.usual)):
            more = min(getattr(subject, most) - widths[subject.title], left // (len(subjects) - i))
            widths[subject.title] += max(0, more)
            left -= max(0, more)
    return [max(8, widths[subject.title]) for subject in subjects]


def _title(subject: Subject, width: int, *, growth: bool) -> str:
    return f"{subject.title[:width]:<{width}}{'sessions':>{SESSIONS}}" + f"{'growth/s':>{GROWTH}}" * growth


def _cell(ranked: Ranking, i: int, width: int, *, growth: bool) -> str:
    if i >= len(ranked.rows):
        return " " * (width + SESSIONS + GROWTH * growth)
    row = ranked.rows[i]
    more = "-" if row.growth is None else per_second(row.growth, "+")
    return f"{shortened(row.name, width):<{width}}{row.sessions:>{SESSIONS},}" + f"{more:>{GROWTH}}" * growth


def shortened(name: str, width: int) -> str:
    """A name with its middle left out, never its end: that is where the port is (`]:65535`)."""
    end = max(7, (width - 2) // 2)
    return name if len(name) <= width else f"{name[: max(0, width - 2 - end)]}..{name[-end:]}"[-width:]


def per_second(rate: float | None, sign: str = "") -> str:
    """A rate in few characters; `-`: not known."""
    if rate is None:
        return "-"
    return f"{rate:{sign},.{0 if abs(rate) >= SHORT else 1}f}" if rate else "0"

"""Prints the man page or a shell's completions, made from the command line itself.

Usage: python deploy/documents.py man|bash|zsh|fish
"""

import enum
import sys
import typing
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from typer.models import ArgumentInfo

from twctl import __version__
from twctl.commands.cli import app
from twctl.config.keys import KEYS
from twctl.config.template import template

INTRODUCTION = """\
twctl shows what TCP TIME_WAIT does on a Linux host. On request it ends TIME_WAIT after a time that depends on how near
the peer is, or keeps a small record in place of the socket. Nouns (status, table, top, blame, advise, classify, check,
config) read and change nothing; they work without the daemon, as long as the table is pinned. Verbs (run, drain,
release) change something.
"""
FILES = {
    "/etc/twctl.toml": "the configuration; CONFIGURATION has every key with its default",
    "/sys/fs/bpf/twctl": "pinned programs, links and maps",
    "/run/twctl": "the journal of changed sysctls, from which release puts them back",
}
STATUSES = {
    "0": "success",
    "1": "an error; one line on standard error says what to do",
    "2": "wrong usage",
    "75": "another process has the address or the table; a later try may succeed",
}


@dataclass(frozen=True)
class Word:
    """An option (its name begins with --) or an argument. value: what its value is called, empty for a flag."""

    name: str
    value: str
    choices: tuple[str, ...]
    help: str


@dataclass(frozen=True)
class Command:
    """A command, read from its function: typer's own description differs from version to version."""

    help: str
    words: tuple[Word, ...]

    @property
    def options(self) -> list[Word]:
        """The words that begin with --."""
        return [word for word in self.words if word.name.startswith("--")]


def commands() -> dict[str, Command]:
    """Every command by name."""
    named = ((each.name, each.callback) for each in app.registered_commands if each.callback)
    callbacks = {name or callback.__name__: callback for name, callback in named}
    return {name: Command((each.__doc__ or "").strip(), tuple(words(each))) for name, each in callbacks.items()}


def words(callback: Callable[..., object]) -> Iterator[Word]:
    """What a command takes."""
    for name, hint in typing.get_type_hints(callback, include_extras=True).items():
        if name == "return":
            continue
        annotated, about = typing.get_args(hint)
        types = [annotated, *typing.get_args(annotated)]
        kind = next((each for each in types if isinstance(each, type) and issubclass(each, enum.Enum)), None)
        choices = tuple(str(each.value) for each in kind) if kind else ()
        argument = isinstance(about, ArgumentInfo)
        # `about.default` is the option's name where one was given: the default itself stands in the function.
        option = about.default if isinstance(about.default, str) else f"--{name.replace('_', '-')}"
        numeric = next((each.__name__ for each in types if each in {int, float}), "text")
        value = "" if annotated is bool else str(about.metavar or "|".join(choices) or numeric.upper())
        yield Word(value if argument else option, value, choices, about.help or "")


def escaped(text: str) -> str:
    """Text that troff takes as it is."""
    plain = text.replace("\\", "\\e").replace("-", "\\-").replace("'", "\\(aq")
    return "\n".join(f"\\&{line}" if line.startswith(".") else line for line in plain.split("\n"))


def man() -> Iterator[str]:
    """Lines of twctl(1)."""
    yield f'.TH TWCTL 1 "" "twctl {__version__}" "User Commands"'
    yield from (".SH NAME", escaped("twctl - see, shorten and compact TCP TIME_WAIT"))
    yield from (".SH SYNOPSIS", ".B twctl", ".I COMMAND", "[OPTION...]")
    yield from (".SH DESCRIPTION", escaped(INTRODUCTION.strip()), ".SH COMMANDS")
    for name, command in sorted(commands().items()):
        arguments = [word.name for word in command.words if word not in command.options]
        yield from (f".SS twctl {escaped(' '.join([name, *arguments]))}", escaped(command.help))
        for option in command.options:
            value = rf" \fI{escaped(option.value)}\fR" if option.value else ""
            yield from (".TP", rf"\fB{escaped(option.name)}\fR{value}", escaped(option.help))
    yield from (".SH CONFIGURATION", ".nf", escaped(template(KEYS)), ".fi")
    for title, rows in (("FILES", FILES), ("EXIT STATUS", STATUSES)):
        yield f".SH {title}"
        for name, text in rows.items():
            yield from (".TP", rf"\fB{escaped(name)}\fR", escaped(text))
    yield from (".SH SEE ALSO", r"\fBss\fR(8), \fBtc\-bpf\fR(8), \fBtcp\fR(7)")


def bash() -> Iterator[str]:
    """Completions of commands, options, and values of options that have few."""
    yield from ("_twctl() {", '    local word=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD - 1]} words=""')
    yield '    case "${COMP_WORDS[1]-} $before" in'
    for name, command in commands().items():
        for option in command.options:
            if option.choices:
                yield f'    "{name} {option.name}") words="{" ".join(option.choices)}" ;;'
            elif option.value in {"FILE", "DIR"}:
                yield f'    "{name} {option.name}") mapfile -t COMPREPLY < <(compgen -f -- "$word") && return ;;'
    yield '    *) case "$COMP_CWORD ${COMP_WORDS[1]-}" in'
    yield f'        "1 "*) words="{" ".join(commands())} --help --version" ;;'
    for name, command in commands().items():
        yield f'        *" {name}") words="{" ".join([*(option.name for option in command.options), "--help"])}" ;;'
    yield from ("        esac ;;", "    esac", '    mapfile -t COMPREPLY < <(compgen -W "$words" -- "$word")', "}")
    yield "complete -F _twctl twctl"


def quoted(text: str) -> str:
    """Text between single quotes, for zsh and fish; characters that are syntax in their lists are replaced."""
    return text.replace("'", "").replace("[", "(").replace("]", ")").replace(":", ",")


def zsh() -> Iterator[str]:
    """Completions for zsh, with the help of each."""
    yield from ("#compdef twctl", "_twctl() {", "    local -a commands=(")
    for name, command in commands().items():
        yield f"        '{name}:{quoted(command.help)}'"
    yield from (
        "    )",
        "    if ((CURRENT == 2)); then",
        "        _describe command commands",
        "        return",
        "    fi",
    )
    yield '    case "$words[2]" in'
    for name, command in commands().items():
        yield f"    {name})"
        arguments = []
        for option in command.options:
            value = f":value:({' '.join(option.choices)})" if option.choices else ":value:_files" * bool(option.value)
            arguments.append(f"'*{option.name}[{quoted(option.help)}]{value}'")
        yield f"        _arguments '1:command:' {' '.join(arguments)} ;;"
    yield from ("    esac", "}", '_twctl "$@"')


def fish() -> Iterator[str]:
    """Completions for fish, with the help of each."""
    yield "complete -c twctl -f"
    for name, command in commands().items():
        yield f"complete -c twctl -n __fish_use_subcommand -a {name} -d '{quoted(command.help)}'"
        for option in command.options:
            value = f" -x -a '{' '.join(option.choices)}'" if option.choices else " -r" * bool(option.value)
            seen = f"'__fish_seen_subcommand_from {name}'"
            yield f"complete -c twctl -n {seen} -l {option.name.removeprefix('--')}{value} -d '{quoted(option.help)}'"


if __name__ == "__main__":
    sys.stdout.writelines(f"{line}\n" for line in {"man": man, "bash": bash, "zsh": zsh, "fish": fish}[sys.argv[1]]())

"""The way into the command line and out of it: Ctrl-C while it loads, and errors as one line and an exit status."""

import os
import signal
import sys


def main() -> None:
    """Run a command: one line on standard error and exit status 1 if it fails, 2 if it was called wrongly."""
    loading = signal.getsignal(signal.SIGINT)
    if loading is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # what is loaded next takes tenths of a second
    from twctl.commands.cli import app  # noqa: PLC0415 - not before Ctrl-C is seen to
    from twctl.commands.reach import not_root  # noqa: PLC0415
    from twctl.errors import TwctlError  # noqa: PLC0415

    signal.signal(signal.SIGINT, loading)
    _open_closed()
    try:
        app(prog_name="twctl")  # python -m twctl is the same, also to a shell that completes
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    except TwctlError as error:
        _end(str(error), error.status)
    except BrokenPipeError:  # the reader of `twctl table` has seen enough
        _forget_output()
        sys.exit(1)
    except OSError as error:
        if "--install-completion" in sys.argv:
            _end(f"cannot install the completion: {error} (see that HOME can be written)")
        if isinstance(error, PermissionError) and os.geteuid():
            _end(str(not_root()))
        if not error.filename and _is_of_output(error):
            _forget_output()
            _end(f"cannot write the output: {error.strerror} (see where standard output leads)")
        raise


def _open_closed() -> None:
    """Standard output and error that a shell has closed: no other file is to get their numbers."""
    if sys.stdout is None:  # >&-: to write is to be an error
        sys.stdout = os.fdopen(os.open(os.devnull, os.O_RDONLY), "w")
    if sys.stderr is None:  # 2>&-: nobody is to hear, and print() would take standard output in its place
        sys.stderr = os.fdopen(os.open(os.devnull, os.O_WRONLY), "w")


def _is_of_output(error: OSError) -> bool:
    """Whether it came of writing to standard output: then a line more fails in the same way."""
    try:
        sys.stdout.write("\n")
        sys.stdout.flush()
    except OSError as again:
        return again.errno == error.errno
    return False


def _forget_output() -> None:
    """Python would complain once more when it flushes at the end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _end(line: str, status: int = 1) -> None:
    print(f"twctl: {line}", file=sys.stderr)  # noqa: T201 - typer's echo is not at hand for whoever is interrupted
    sys.exit(status)

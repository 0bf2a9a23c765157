"""What a line of `twctl check` says; tests/kernel runs it on a real kernel."""

from twctl.commands.check import Line, Verdict, _line
from twctl.errors import TwctlError


def test_what_works_is_ok_with_its_reason() -> None:
    """No hint is needed."""
    found = _line("BTF", lambda: "has all fields")
    assert Line("BTF", Verdict.OK, "has all fields") == found
    assert "ok   BTF        has all fields" == str(found)


def test_what_fails_has_reason_and_hint() -> None:
    """From the error itself."""

    def attempt() -> str:
        raise TwctlError("no BTF", "another kernel")

    assert Line("BTF", Verdict.FAIL, "no BTF", "another kernel") == _line("BTF", attempt)
    assert "fail BTF        no BTF (another kernel)" == str(_line("BTF", attempt))

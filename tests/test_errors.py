"""The one exception that users see."""

from twctl.errors import TwctlError


def test_an_error_is_one_line_with_what_to_do_in_brackets() -> None:
    """Both parts stay apart for who wants one of them."""
    error = TwctlError("no table is pinned", "start 'twctl run' as root first")
    assert "no table is pinned (start 'twctl run' as root first)" == str(error)
    assert ("no table is pinned", "start 'twctl run' as root first") == (error.message, error.hint)

"""A call of the C library that fails is an OSError."""

import errno

import pytest

from twctl.linux.libc import checked, libc


def test_a_call_that_fails_says_why() -> None:
    """By its errno; one that returns 0 says nothing."""
    checked(libc.getpgid(0) < 0)
    with pytest.raises(OSError, match="Bad file descriptor") as raised:
        checked(libc.close(-1))
    assert errno.EBADF == raised.value.errno

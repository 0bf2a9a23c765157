"""The C library, for what Python has no call for."""

import ctypes
import os

libc = ctypes.CDLL(None, use_errno=True)


def checked(result: int, *about: str) -> None:
    """Raise OSError for a call that did not return 0. about: what it was about, for the message."""
    if result:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), *about)

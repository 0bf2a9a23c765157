"""Has programs find a kernel without TCX, as before Linux 6.6; Python imports this by its name.

Only what leaves the process is looked at, so the product knows nothing of it: libbpf makes no link to a device.
"""

import ctypes
import errno
import os


def _older(pointer: type) -> type:
    """A class of foreign functions that refuses to make links."""

    class Older(pointer):  # type: ignore[misc]
        _flags_, _restype_ = pointer._flags_, pointer._restype_  # type: ignore[attr-defined]

        def __call__(self, *arguments: object) -> object:
            return -errno.EINVAL if getattr(self, "__name__", "") == "bpf_link_create" else super().__call__(*arguments)

    return Older


def _load(self: ctypes.CDLL, *arguments: object, **options: object) -> None:
    _init(self, *arguments, **options)  # type: ignore[arg-type]
    self._FuncPtr = _older(self._FuncPtr)


if os.environ.get("TWCTL_TEST_CLSACT"):
    _init = ctypes.CDLL.__init__
    ctypes.CDLL.__init__ = _load  # type: ignore[method-assign]

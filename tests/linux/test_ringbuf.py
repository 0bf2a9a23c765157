"""A ring buffer that nobody has written to yet, and one that cannot be."""

import os

import pytest

from twctl.linux.ringbuf import RingBuffer

NAME = b"twctl_test"


@pytest.mark.skipif(os.geteuid() != 0, reason="making a map needs root")
def test_an_empty_ring_has_no_pieces() -> None:
    """And is given back: its descriptor is closed."""
    ring = RingBuffer(NAME, 65536)
    assert not list(ring.pieces())
    ring.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(ring.fd)


def test_what_the_kernel_does_not_make_is_an_error() -> None:
    """A size that is no power of two; who has no rights gets an error, too."""
    with pytest.raises(OSError, match="bpf_map_create"):
        RingBuffer(NAME, 65537)

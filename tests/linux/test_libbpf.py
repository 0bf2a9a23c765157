"""libbpf's own errors, as Python's."""

import errno
from pathlib import Path

import pytest

from twctl.linux import libbpf


def test_a_pin_that_is_not_there_is_a_file_that_is_not_found(tmp_path: Path) -> None:
    """With the path that was asked for."""
    with pytest.raises(FileNotFoundError) as missing:
        libbpf.obj_get(tmp_path / "none")
    assert missing.value.filename is None or str(tmp_path) in str(missing.value)


def test_what_is_no_object_of_the_kernel_is_refused(tmp_path: Path) -> None:
    """A descriptor that is not open can be neither pinned nor asked for its number."""
    with pytest.raises(OSError, match="pin") as refused:
        libbpf.obj_pin(-1, tmp_path / "pin")
    assert refused.value.errno in {errno.EBADF, errno.EPERM, errno.EINVAL}
    with pytest.raises(OSError, match="bpf_obj_get_info_by_fd"):
        libbpf.program_id(-1)

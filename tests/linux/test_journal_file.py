"""The journal's file: what is read is what was written, and nothing else is taken for it."""

from pathlib import Path

import pytest

from twctl.errors import TwctlError
from twctl.linux.journal_file import Entry, read, write

ENTRIES = [
    Entry(None, 7, "net.ipv4.tcp_max_tw_buckets", 131072, (0,)),
    Entry("blue", 11, "net.ipv4.tcp_fin_timeout", 60, (120, 62)),
]


def test_what_is_read_is_what_was_written(tmp_path: Path) -> None:
    """In its order; the folder is for root alone, and nothing half-written stays."""
    path = tmp_path / "folder" / "journal.json"
    write(path, ENTRIES[:1])
    write(path, ENTRIES)
    assert ENTRIES == read(path)
    assert (0o700, [path]) == (path.parent.stat().st_mode & 0o777, list(path.parent.iterdir()))


def test_a_record_of_an_earlier_version_has_one_number(tmp_path: Path) -> None:
    """Of what was written."""
    path = tmp_path / "journal.json"
    path.write_text('[{"namespace": null, "cookie": 7, "name": "net.ipv4.tcp_tw_reuse", "before": 2, "written": 1}]')
    assert [Entry(None, 7, "net.ipv4.tcp_tw_reuse", 2, (1,))] == read(path)


@pytest.mark.parametrize("text", ["", "garbage{", "7", '[{"name": "x"}]', "[7]", '[{"written": null}]'])
def test_a_damaged_journal_is_one_line(tmp_path: Path, text: str) -> None:
    """It is left for whoever puts its sysctls back by hand."""
    path = tmp_path / "journal.json"
    path.write_text(text)
    with pytest.raises(TwctlError, match=f"{path}, is damaged .*by hand"):
        read(path)
    assert text == path.read_text()

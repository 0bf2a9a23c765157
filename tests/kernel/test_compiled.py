"""What bcc and the kernel say of a program that they refuse, as one line with a hint."""

import os
from pathlib import Path

import pytest

from twctl.errors import TwctlError
from twctl.table import compiled

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 and not os.environ.get("TWCTL_TEST_KERNEL"),
    reason="BPF needs root; TWCTL_TEST_KERNEL=1 forces it",
)


@pytest.fixture(autouse=True)
def _bcc() -> None:
    pytest.importorskip("bcc")


def of_text(text: str, monkeypatch: pytest.MonkeyPatch, program: str = "work") -> None:
    """Compile a text and load its program."""
    monkeypatch.setattr(compiled, "source", lambda _: text)
    compiled.compiled("text.c", [], [program], "RAW_TRACEPOINT", "test")


def test_what_does_not_compile_is_told_with_the_compiler_s_error(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """And nothing else is printed."""
    with pytest.raises(TwctlError, match=r"the test does not load: .*error: .*nowhere"):
        of_text("int work(void *ctx) { return nowhere; }", monkeypatch)
    assert not capfd.readouterr().err


def test_what_the_verifier_refuses_is_an_error_with_a_hint(monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that reads where it may not."""
    with pytest.raises(TwctlError, match="the test does not load") as refused:
        of_text("int work(void *ctx) { return *(volatile int *)4096; }", monkeypatch)
    assert "twctl check" in refused.value.hint


def test_a_program_that_is_well_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """So the errors above are those of their programs."""
    of_text("int work(void *ctx) { return 7; }", monkeypatch)


def test_the_release_that_runs_has_two_numbers() -> None:
    """As uname says."""
    release = compiled.running_release()
    assert Path("/proc/sys/kernel/osrelease").read_text().startswith(".".join(map(str, release)))


@pytest.mark.parametrize(
    ("failure", "release", "machine", "lacking"),
    [
        ("Failed to load BPF program b'take': Invalid argument", (5, 10), "x86_64", "atomic exchange"),
        ("Failed to load BPF program b'take': Invalid argument", (6, 1), "x86_64", ""),
        ("Failed to load BPF program b'take': Unknown error 524", (5, 15), "aarch64", "atomic exchange"),
        ("Failed to load BPF program b'take': Unknown error 524", (5, 15), "x86_64", ""),
        ("Failed to load BPF program b'take': Unknown error 524", (5, 18), "aarch64", ""),
        ("Failed to attach BPF to entry kernel func", (6, 1), "aarch64", "direct calls"),
        ("Failed to attach BPF to entry kernel func", (6, 12), "aarch64", ""),
        ("Failed to attach BPF to entry kernel func", (6, 1), "x86_64", ""),
    ],
)
def test_what_a_kernel_has_not_got_yet_is_named(
    failure: str, release: tuple[int, ...], machine: str, lacking: str
) -> None:
    """In place of an error number that says nothing."""
    found = compiled.lacks(failure, release, machine)
    assert bool(lacking) == bool(found)
    assert lacking in found


def test_a_kernel_that_is_too_old_is_told_which_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also of arm64, where that is a later one."""
    monkeypatch.setattr(compiled, "lacks", lambda *_: "atomic exchange in BPF (5.12)")
    with pytest.raises(TwctlError) as refused:
        of_text("int work(void *ctx) { return *(volatile int *)4096; }", monkeypatch)
    assert refused.value.hint == "twctl needs Linux 5.15 or later, on arm64 5.18"

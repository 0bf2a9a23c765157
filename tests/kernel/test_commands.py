"""Every command as a user types it, what is served over HTTP, and the layout that C and Python share."""

import json
import os
import re
import ssl
import struct
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.load import paths
from tests.load.clients import certificate
from tests.load.daemon import Daemon, daemon, twctl
from tests.load.netns import Link, link
from tests.load.paths import CLIENT, IPV4, IPV6
from twctl.addresses import FAMILIES
from twctl.classes import Class
from twctl.table.counters import Reason
from twctl.table.maps import META, Table

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 and not os.environ.get("TWCTL_TEST_KERNEL"),
    reason="BPF needs root; TWCTL_TEST_KERNEL=1 forces it",
)

N = 23


@pytest.fixture(scope="module")
def place() -> Iterator[tuple[Link, Daemon]]:
    """A daemon with 23 sessions of each family over lo, and 23 local ones."""
    with ExitStack() as stack:
        both = stack.enter_context(link({"net.ipv4.tcp_rfc1337": 1}))
        one = stack.enter_context(daemon(both.client))
        for family in (IPV4, IPV6):
            paths.fin_wait2(paths.over_lo(both.client, family), N, CLIENT)
        paths.fin_wait2(paths.over_link(both), N, CLIENT)
        yield both, one


def rows(one: Daemon, *words: str) -> list[dict[str, object]]:
    """What `twctl table --json` prints."""
    done = twctl("table", *one.options, "--json", *words)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_the_table_can_be_filtered(place: tuple[Link, Daemon]) -> None:
    """By class, family, prefix of the remote address and local port."""
    both, one = place
    assert [3 * N, N, 2 * N, N, N, 0] == [
        len(rows(one, *words))
        for words in (
            (),
            ("--class", "local"),
            ("--class", "loopback"),
            ("--family", "ipv6"),
            ("--remote", f"{both.server_ipv4}/32"),
            ("--class", "local", "--family", "ipv6"),
        )
    ]
    port = str(rows(one)[0]["local_port"])
    assert {port} == {str(row["local_port"]) for row in rows(one, "--local-port", port)}


def test_each_noun_prints_json_and_lines_of_80_columns(place: tuple[Link, Daemon]) -> None:
    """With the daemon running."""
    both, one = place
    nouns = (["status"], ["config"], ["check"], ["classify", both.server_ipv4, "--netns", both.client.name])
    for noun, *words in nouns:
        options = one.options if noun in {"status", "check"} else one.options[:2]
        for line in twctl(noun, *words, *options, "--json").stdout.splitlines():
            json.loads(line)
    for words in (["status"], ["table", "--family", "ipv4"]):
        lines = twctl(*words, *one.options).stdout.splitlines()
        assert lines
        # a namespace has whatever name its maker gave it
        assert max(len(line.removesuffix(both.client.name)) for line in lines[1:]) <= 80


def test_classify_tells_prefix_interface_and_gateway(place: tuple[Link, Daemon]) -> None:
    """For a peer on the link, and for one that no route reaches."""
    both, one = place
    words = ("--netns", both.client.name, *one.options[:2], "--json")
    near = json.loads(twctl("classify", both.server_ipv4, *words).stdout)
    assert ("local", "10.77.0.0/24", "veth0", None) == (
        near["class"],
        near["prefix"],
        near["interface"],
        near["gateway"],
    )
    assert json.loads(twctl("classify", "192.0.2.1", *words).stdout)["class"] == "remote"


def test_nouns_work_while_the_daemon_is_down(place: tuple[Link, Daemon]) -> None:
    """The pins are enough."""
    _, one = place
    one.kill()
    try:
        assert len(rows(one)) == 3 * N
        status = json.loads(twctl("status", *one.options, "--json").stdout)
        assert (False, 3 * N) == (status["daemon"], status["sessions"])
    finally:
        one.start()


BAD = (
    (("table", "--class", "near"), 2),
    (("table", "--remote", "10.0.0.1/8"), 2),
    (("classify", "nowhere"), 2),
    (("status", "--pins", "/sys/fs/bpf/twctl-test-none"), 1),
    (("classify", "10.0.0.1", "--netns", "twctl-test-none"), 1),
    (("run", "--listen", "here"), 2),
    (("run", "--config", "/nowhere.toml"), 1),
)


@pytest.mark.parametrize(("words", "status"), BAD)
def test_bad_input_says_what_and_what_to_do(words: tuple[str, ...], status: int) -> None:
    """One line and exit status 1 for an error, usage and 2 for wrong words; never a traceback."""
    done = twctl(*words)
    assert status == done.returncode
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    if status == 1:
        assert re.fullmatch(r"twctl: .+ \(.+\)\n", done.stderr), done.stderr


def test_metrics_follow_prometheus_s_rules(place: tuple[Link, Daemon]) -> None:
    """Each family has help and type, counters end in _total, no series stands twice, and own errors come last."""
    _, one = place
    text = one.get()
    types = dict(re.findall(r"^# TYPE (\S+) (\S+)$", text, re.MULTILINE))
    assert set(types) == set(re.findall(r"^# HELP (\S+) \S", text, re.MULTILINE))
    for name, kind in types.items():
        assert (kind == "counter") == name.endswith("_total"), name
        assert not re.search(r"_(ms|us|milliseconds|mb|kb|percent)(_|$)", name)
    series = [line.rsplit(" ", 1)[0] for line in text.splitlines() if not line.startswith("#")]
    assert len(series) == len(set(series))
    assert text.splitlines()[-1].startswith("twctl_collect_errors_total 0")


def test_every_label_value_is_there_from_the_first_scrape(place: tuple[Link, Daemon]) -> None:
    """Classes, families, reasons and modes, also those that are 0."""
    metrics = place[1].metrics()
    for class_ in Class:
        for family in FAMILIES:
            assert f'twctl_time_wait_sessions{{class="{class_.label}",family="{family}"}}' in metrics
        for reason in Reason:
            assert f'twctl_time_wait_ended_total{{class="{class_.label}",reason="{reason.name.lower()}"}}' in metrics
    assert {1.0, 0.0} == {metrics[f'twctl_mode{{mode="{mode}"}}'] for mode in ("observe", "truncate", "vestigial")}


def test_the_landing_page_says_what_this_is(place: tuple[Link, Daemon]) -> None:
    """/ links to /metrics, other paths are not found."""
    assert '<a href="/metrics">' in place[1].get("/")
    with pytest.raises(urllib.error.HTTPError) as failure:
        place[1].get("/other")
    assert failure.value.code == 404


def test_tls_asks_for_the_client_s_certificate(tmp_path: Path) -> None:
    """With [tls] a client with the certificate is served, and one without is not."""
    cert, key = certificate(tmp_path)
    with link() as both:
        config = f'[tls]\ncertfile = "{cert}"\nkeyfile = "{key}"\nclient_ca = "{cert}"\n'
        with daemon(both.client, config=config) as one:
            url = f"https://127.0.0.1:{one.port}/metrics"
            stranger = ssl.create_default_context(cafile=str(cert))
            with pytest.raises((urllib.error.URLError, ssl.SSLError, ConnectionError)):
                urllib.request.urlopen(url, context=stranger).read()
            known = ssl.create_default_context(cafile=str(cert))
            known.load_cert_chain(cert, key)
            with urllib.request.urlopen(url, context=known) as answer:
                assert b"twctl_build_info" in answer.read()


def test_the_epoch_of_the_jiffies_is_found(place: tuple[Link, Daemon]) -> None:
    """What a later look finds is no earlier by more than a millisecond: a vestige's time is the clock's."""
    table = Table(place[1].pins / "current", writable=True)
    field = META.fields["epoch"]

    def epoch() -> int:
        return int(struct.unpack_from(f"={field.format}", table.map("meta", META.size), field.offset)[0])

    before, program = epoch(), table.program("epoch")
    for _ in range(101):
        time.sleep(0.0003)
        program.run(0)
    assert 0 <= before - epoch() <= 1_000_000


@pytest.mark.parametrize("output", [">/dev/full", ">&-"])
@pytest.mark.parametrize("noun", ["status", "table", "blame", "advise", "events", "top"])
def test_output_that_cannot_be_written_is_one_line(place: tuple[Link, Daemon], noun: str, output: str) -> None:
    """Of whatever writes it: most lines are echoed, events are written many at a time, top draws."""
    options = place[1].options + ["--interval", "0.1"] * (noun == "top")
    done = twctl(noun, *options, prefix=("sh", "-c", f'exec "$@" {output}', "sh"))
    assert (1, "twctl: cannot write the output: ") == (
        done.returncode,
        done.stderr.partition("output: ")[0] + "output: ",
    )
    assert 1 == len(done.stderr.splitlines())

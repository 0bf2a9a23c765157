"""The configuration: defaults, sources, and one line for whatever is refused."""

import json
from datetime import datetime
from ipaddress import ip_network
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twctl.classes import Class
from twctl.config.config import (
    BlameSettings,
    Capacity,
    Config,
    Effective,
    PressureSettings,
    Tls,
    from_published,
    load,
    pins_of,
)
from twctl.config.keys import Listen, Mode, Probe
from twctl.errors import TwctlError

NOWHERE = Path("/nonexistent/twctl.toml")
KEYS = [name for name, _, _ in load(None, {}, default_file=NOWHERE).rows()]
TABLES = [
    "time_wait",
    "fin_wait2",
    "reuse_age",
    "capacity",
    "capacity.ipv4",
    "capacity.ipv6",
    "classes",
    "tls",
    "sysctl",
    "pressure",
    "pressure.floor",
    "connect",
    "blame",
]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Where a test writes its configuration."""
    return tmp_path / "twctl.toml"


def loaded(file: Path, text: str, **overrides: object) -> Effective:
    """What a file with this text gives."""
    file.write_text(text, encoding="utf-8")
    return load(file, overrides)


@pytest.mark.parametrize(("mode", "seconds"), [("observe", 60), ("truncate", 23), ("vestigial", 23)])
def test_conntrack_s_time_follows_that_of_the_classes(file: Path, mode: str, seconds: int) -> None:
    """The longest that is in force, in whole seconds; the key says where it is from."""
    text = f'mode = "{mode}"\ntime_wait.remote = 22.5\nsysctl.nf_conntrack_tcp_timeout_time_wait = "time_wait"'
    effective = loaded(file, text)
    assert {"net.netfilter.nf_conntrack_tcp_timeout_time_wait": seconds} == effective.config.sysctl
    assert ("sysctl.nf_conntrack_tcp_timeout_time_wait", "time_wait", str(file)) in effective.rows()
    assert effective.config == from_published(effective.published()).config


def test_defaults_need_no_file() -> None:
    """Without a file every key has its default and says so."""
    effective = load(None, {}, default_file=NOWHERE)
    sessions = dict.fromkeys(Class, 65536)
    expected = Config(
        mode=Mode.OBSERVE,
        listen=Listen("127.0.0.1", 9815),
        netns=(),
        all_netns=False,
        pins=Path("/sys/fs/bpf/twctl"),
        probe=Probe.AUTO,
        reconcile_interval=15.0,
        force=False,
        time_wait={Class.LOOPBACK: 2.0, Class.LOCAL: 10.0, Class.REMOTE: 60.0},
        fin_wait2=dict.fromkeys(Class, 60.0),
        reuse_age=dict.fromkeys(Class, 0.0),
        capacity=Capacity(ipv4=sessions, ipv6=sessions),
        classes={},
        tls=None,
        sysctl={},
        pressure=PressureSettings(
            psi_stall=150,
            tcp_memory=True,
            port_headroom=0.0,
            floor={Class.LOOPBACK: 1.0, Class.LOCAL: 2.0, Class.REMOTE: 15.0},
            orphans=32768,
        ),
        blame=BlameSettings(destinations=5, metrics=0),
        port_search=10,
    )
    assert expected == effective.config
    assert {"default"} == {source for _, _, source in effective.rows()}


def test_file_sets_every_key(file: Path) -> None:
    """What the file says is what the configuration holds."""
    text = """
        mode = "vestigial"
        listen = "[::1]:0"
        netns = ["blue", "green", "blue"]
        pins = "/run/bpf/twctl"
        probe = "fentry"
        reconcile_interval = 0
        capacity.ipv4 = 256
        capacity.ipv6 = {loopback = 257, local = 258, remote = 4194304}
        [time_wait]
        loopback = 0.5
        local = 1000
        [fin_wait2]
        loopback = 3
        [reuse_age]
        remote = 5
        [classes]
        local = ["10.0.0.0/8", "fd00::/8"]
        remote = ["10.1.0.0/16"]
        [tls]
        certfile = "/etc/a.pem"
        keyfile = "/etc/b.pem"
        client_ca = "/etc/c.pem"
        [sysctl]
        tcp_fin_timeout = 30
        tcp_tw_reuse = 1
        [pressure]
        psi_stall = 0
        tcp_memory = false
        port_headroom = 0.2
        floor = {local = 3, remote = 20}
        orphans = 1009
        [blame]
        destinations = 23
        metrics = 100
        [connect]
        port_search = 0
    """
    expected = Config(
        mode=Mode.VESTIGIAL,
        listen=Listen("::1", 0),
        netns=("blue", "green"),
        all_netns=False,
        pins=Path("/run/bpf/twctl"),
        probe=Probe.FENTRY,
        reconcile_interval=0.0,
        force=False,
        time_wait={Class.LOOPBACK: 0.5, Class.LOCAL: 1000.0, Class.REMOTE: 60.0},
        fin_wait2={Class.LOOPBACK: 3.0, Class.LOCAL: 60.0, Class.REMOTE: 60.0},
        reuse_age={Class.LOOPBACK: 0.0, Class.LOCAL: 0.0, Class.REMOTE: 5.0},
        capacity=Capacity(
            ipv4=dict.fromkeys(Class, 256),
            ipv6={Class.LOOPBACK: 257, Class.LOCAL: 258, Class.REMOTE: 4194304},
        ),
        classes={
            ip_network("10.0.0.0/8"): Class.LOCAL,
            ip_network("fd00::/8"): Class.LOCAL,
            ip_network("10.1.0.0/16"): Class.REMOTE,
        },
        tls=Tls(Path("/etc/a.pem"), Path("/etc/b.pem"), Path("/etc/c.pem")),
        sysctl={"net.ipv4.tcp_fin_timeout": 30, "net.ipv4.tcp_tw_reuse": 1},
        pressure=PressureSettings(
            psi_stall=0,
            tcp_memory=False,
            port_headroom=0.2,
            floor={Class.LOOPBACK: 0.5, Class.LOCAL: 3.0, Class.REMOTE: 20.0},
            orphans=1009,
        ),
        blame=BlameSettings(destinations=23, metrics=100),
        port_search=0,
    )
    assert expected == loaded(file, text).config


def test_one_capacity_stands_for_all_classes_and_families(file: Path) -> None:
    """`capacity = N` sets the six capacities, and each row names the file."""
    effective = loaded(file, "capacity = 1009")
    sessions = dict.fromkeys(Class, 1009)
    assert Capacity(ipv4=sessions, ipv6=sessions) == effective.config.capacity
    rows = [(value, source) for name, value, source in effective.rows() if name.startswith("capacity.")]
    assert [(1009, str(file))] * 6 == rows


def test_command_line_wins_over_file_and_file_over_default(file: Path) -> None:
    """Each row tells the value in force and the layer it is from."""
    text = 'mode = "truncate"\nprobe = "tracepoint"'
    effective = loaded(file, text, mode="observe", listen=None, netns=["blue"], pins=Path("/run/pins"))
    rows = {name: (value, source) for name, value, source in effective.rows()}
    assert ("observe", "command line") == rows["mode"]
    assert ("tracepoint", str(file)) == rows["probe"]
    assert ("127.0.0.1:9815", "default") == rows["listen"]
    assert (["blue"], "command line") == rows["netns"]
    assert ("/run/pins", "command line") == rows["pins"]


@pytest.mark.parametrize("nothing", [None, [], ()])
def test_option_not_given_leaves_the_file_alone(file: Path, nothing: object) -> None:
    """None and empty lists on the command line are options that were not given."""
    assert ("blue",) == loaded(file, 'netns = ["blue"]', netns=nothing).config.netns


def test_rows_are_json(file: Path) -> None:
    """Every row can be printed as JSON and reads as it would stand in a file."""
    text = 'listen = "[::1]:9815"\nclasses.local = ["10.0.0.0/8"]'
    rows = {name: value for name, value, _ in json.loads(json.dumps(list(loaded(file, text).rows())))}
    assert "[::1]:9815" == rows["listen"]
    assert ["10.0.0.0/8"] == rows["classes.local"]
    assert rows["tls.certfile"] is None


def test_default_file_is_read_where_it_exists(file: Path) -> None:
    """Without --config the default file counts, and is named as the source."""
    file.write_text('mode = "truncate"', encoding="utf-8")
    effective = load(None, {}, default_file=file)
    assert Mode.TRUNCATE == effective.config.mode
    assert ("mode", "truncate", str(file)) == next(effective.rows())


def test_named_file_must_exist() -> None:
    """A file that --config names and that is not there is an error."""
    expected = "/nonexistent/twctl.toml: cannot be read: No such file or directory (give a TOML file that exists)"
    with pytest.raises(TwctlError) as refused:
        load(NOWHERE, {})
    assert expected == str(refused.value)


SECONDS = "allowed: seconds above 0, up to 1000"
SESSIONS = "allowed: a whole number of sessions from 256 to 4194304"
INTERVAL = "allowed: 0 (never) or seconds from 0.1 to 86400"
LISTEN = "allowed: HOST:PORT or [IPV6]:PORT, with port 0 to 65535"
PARTIES = "allowed: 0 (off) or how many parties of each kind, up to 100"
PREFIXES = "allowed: a list of prefixes such as 10.0.0.0/8 or fd00::/8"
NETNS = "allowed: a list of names under /run/netns"
TOP = (
    "mode, listen, netns, all_netns, pins, probe, reconcile_interval, force, "
    "time_wait, fin_wait2, reuse_age, capacity, classes, tls, sysctl, pressure, connect, blame"
)
TRUNCATE = 'in mode truncate the kernel ends TIME_WAIT at 60 s: allowed up to 60, or set mode = "vestigial"'
MAPPED = "is IPv4 on the wire, write the IPv4 prefix"
NO_NETWORK = "does not appear to be an IPv4 or IPv6 network"
TWICE = "is in classes.local too: allowed in one class only"

REFUSED = [
    ('mode = "fast"', 'mode = "fast" is not valid (allowed: observe, truncate, vestigial)'),
    ("mode = []", "mode = [] is not valid (allowed: observe, truncate, vestigial)"),
    ('probe = "kprobe"', 'probe = "kprobe" is not valid (allowed: auto, fentry, tracepoint)'),
    ('listen = ":9815"', f'listen = ":9815" is not valid ({LISTEN})'),
    ('listen = "::1:9815"', f'listen = "::1:9815" is not valid ({LISTEN})'),
    ('listen = "localhost:65536"', f'listen = "localhost:65536" is not valid ({LISTEN})'),
    (
        'listen = "127.0.0.256:1"',
        f"""listen = "127.0.0.256:1" is not valid (Octet 256 (> 255) not permitted in '127.0.0.256'; {LISTEN})""",
    ),
    ("listen = 9815", f"listen = 9815 is not valid ({LISTEN})"),
    ('netns = "blue"', f'netns = "blue" is not valid ({NETNS})'),
    ('netns = ["../x"]', f'netns = ["../x"] is not valid ({NETNS})'),
    ('pins = "pins"', 'pins = "pins" is not valid (allowed: an absolute path)'),
    (r'pins = "/a\nb"', r'pins = "/a\nb" is not valid (allowed: an absolute path)'),
    ("reconcile_interval = -1", f"reconcile_interval = -1 is not valid ({INTERVAL})"),
    ("reconcile_interval = nan", f"reconcile_interval = NaN is not valid ({INTERVAL})"),
    ("reconcile_interval = inf", f"reconcile_interval = Infinity is not valid ({INTERVAL})"),
    ("reconcile_interval = true", f"reconcile_interval = true is not valid ({INTERVAL})"),
    ("time_wait.local = 0", f"time_wait.local = 0 is not valid ({SECONDS})"),
    ("time_wait.local = 1000.5", f"time_wait.local = 1000.5 is not valid ({SECONDS})"),
    ("time_wait = 60", "time_wait = 60 is not valid (allowed: a table of loopback, local, remote)"),
    ('mode = "truncate"\ntime_wait.remote = 61', f"time_wait.remote = 61.0 is not valid ({TRUNCATE})"),
    (
        'mode = "vestigial"\nsysctl.tcp_max_tw_buckets = 5',
        "sysctl.tcp_max_tw_buckets = 5 is not valid (mode vestigial sets it to 0 and puts it back: leave it out)",
    ),
    ("capacity = 255", f"capacity = 255 is not valid ({SESSIONS})"),
    ("capacity.ipv4 = 4194305", f"capacity.ipv4 = 4194305 is not valid ({SESSIONS})"),
    ("capacity.ipv6.local = 65536.0", f"capacity.ipv6.local = 65536.0 is not valid ({SESSIONS})"),
    ("capacity = true", f"capacity = true is not valid ({SESSIONS})"),
    ('classes.local = ["10.0.0.0"]', f'classes.local = ["10.0.0.0"] is not valid ({PREFIXES})'),
    (
        'classes.local = ["10.1.2.3/8"]',
        f'classes.local = ["10.1.2.3/8"] is not valid (10.1.2.3/8 has host bits set, write 10.0.0.0/8; {PREFIXES})',
    ),
    (
        'classes.local = ["::ffff:10.0.0.0/104"]',
        f'classes.local = ["::ffff:10.0.0.0/104"] is not valid (::ffff:10.0.0.0/104 {MAPPED}; {PREFIXES})',
    ),
    (
        'classes.local = ["10.0.0.0/33"]',
        f"""classes.local = ["10.0.0.0/33"] is not valid ('10.0.0.0/33' {NO_NETWORK}; {PREFIXES})""",
    ),
    (
        'classes.local = ["10.0.0.0/8"]\nclasses.remote = ["fd00::/8", "10.0.0.0/8"]',
        f'classes.remote = ["fd00::/8", "10.0.0.0/8"] is not valid (10.0.0.0/8 {TWICE})',
    ),
    (
        'tls.keyfile = "/k"',
        'tls.keyfile = "/k" is not valid (set tls.certfile too, or leave tls.keyfile out)',
    ),
    (
        'tls.certfile = "/c"',
        'tls.certfile = "/c" is not valid (set tls.keyfile too, or leave tls.certfile out)',
    ),
    (
        'tls.client_ca = "/a"',
        'tls.client_ca = "/a" is not valid (set tls.certfile too, or leave tls.client_ca out)',
    ),
    ("blame.metrics = 101", f"blame.metrics = 101 is not valid ({PARTIES})"),
    ("blame.metrics = true", f"blame.metrics = true is not valid ({PARTIES})"),
    (
        "time_wait.local = 3\npressure.floor.local = 4",
        "pressure.floor.local = 4.0 is not valid (allowed up to time_wait.local, which is 3)",
    ),
    (
        "reuse_age.loopback = 3",
        "reuse_age.loopback = 3.0 is not valid (allowed up to time_wait.loopback, which is 2)",
    ),
    ("reuse_age.remote = 61", "reuse_age.remote = 61 is not valid (allowed: 0 (off) or seconds from 0.1 to 60)"),
    (
        "pressure.port_headroom = 1",
        "pressure.port_headroom = 1 is not valid (allowed: 0 (off) or a share of the ports, 0.01 to 0.9)",
    ),
    ('mod = "observe"', f"unknown key mod (did you mean mode? allowed: {TOP})"),
    (
        "time_wait.lokal = 1",
        "unknown key time_wait.lokal (did you mean time_wait.local? allowed: loopback, local, remote)",
    ),
    ('"time_wait.local" = 1', f'unknown key "time_wait.local" (did you mean time_wait.local? allowed: {TOP})'),
    ("xyzzy = 1", f"unknown key xyzzy (allowed: {TOP})"),
    ("mode =", "not TOML: Invalid value (at end of document) (correct the file, see https://toml.io)"),
]


@pytest.mark.parametrize(("text", "expected"), REFUSED, ids=[text for text, _ in REFUSED])
def test_refusal_is_one_line_with_file_key_and_allowed_values(file: Path, text: str, expected: str) -> None:
    """What is refused is named with its file, its key and what is allowed instead."""
    with pytest.raises(TwctlError) as refused:
        loaded(file, text)
    assert f"{file}: {expected}" == str(refused.value)


def test_refused_option_names_the_command_line(file: Path) -> None:
    """A bad option is not blamed on the file."""
    with pytest.raises(TwctlError) as refused:
        loaded(file, 'mode = "observe"', mode="fast")
    expected = 'command line: mode = "fast" is not valid (allowed: observe, truncate, vestigial)'
    assert expected == str(refused.value)


@pytest.mark.parametrize("mode", ["observe", "vestigial"])
def test_time_wait_above_the_kernels_is_for_modes_without_it(file: Path, mode: str) -> None:
    """Only truncate depends on the kernel's own 60 s."""
    assert 61.0 == loaded(file, "time_wait.remote = 61", mode=mode).config.time_wait[Class.REMOTE]


@pytest.mark.parametrize(
    "text",
    [
        b"mode = \xff",
        b"mode = " + b"[" * 100_000,
        b"capacity = " + b"1" * 5000,
        b"capacity = 0x1" + b"0" * 5000,
        b"reconcile_interval = 0x1" + b"0" * 5000,
        b"mode = {" + b"a." * 5000 + b"a = 1}",
        b"a." * 5000 + b"a = 1",
        b'listen = "' + b"1" * 100_000 + b':1"',
    ],
    ids=["not UTF-8", "deep", "long", "hexadecimal", "float", "nested", "dotted", "listen"],
)
def test_monstrous_file_is_one_short_line(file: Path, text: bytes) -> None:
    """What breaks parsers and printers is refused like any other mistake."""
    file.write_bytes(text)
    with pytest.raises(TwctlError) as refused:
        load(file, {})
    assert 1 == len(str(refused.value).splitlines())
    assert len(str(refused.value)) < 600


def toml(value: object) -> str:
    """A value as TOML spells it."""
    match value:
        case dict():
            return "{" + ", ".join(f"{toml(str(key))} = {toml(item)}" for key, item in value.items()) + "}"
        case list():
            return "[" + ", ".join(map(toml, value)) + "]"
        case bool() | str():
            return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
        case datetime():
            return value.isoformat()
        case _:
            return str(value)


TEXTS = st.one_of(
    st.text(),
    st.sampled_from(["observe", "truncate", "vestigial", "auto", "/a", "local", "127.0.0.1:1", "[::1]:1"]),
    st.ip_addresses().map(str),
    st.builds("{}/{}".format, st.ip_addresses(), st.integers(0, 128)),
)
SCALARS = st.one_of(TEXTS, st.integers(), st.integers(0, 100_000), st.floats(), st.booleans(), st.datetimes())
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner) | st.dictionaries(TEXTS, inner), max_leaves=5)


def outcome(file: Path, text: str) -> str:
    """What there is to print: the rows, or the one error that is allowed."""
    try:
        return json.dumps(list(loaded(file, text).rows()))
    except TwctlError as refused:
        return str(refused)


@given(st.dictionaries(st.sampled_from(KEYS + TABLES), VALUES, max_size=3))
def test_any_value_loads_or_is_refused(tmp_path_factory: pytest.TempPathFactory, values: dict[str, object]) -> None:
    """Any TOML value of any key loads or raises TwctlError, and either prints on one line."""
    text = "\n".join(f"{name} = {toml(value)}" for name, value in values.items())
    assert 1 == len(outcome(tmp_path_factory.getbasetemp() / "any.toml", text).splitlines())


def test_what_a_daemon_publishes_is_its_configuration(file: Path) -> None:
    """As JSON and back, with the source of each value."""
    file.write_text('mode = "truncate"\n[classes]\nlocal = ["10.0.0.0/8"]\n[tls]\ncertfile = "/a"\nkeyfile = "/b"\n')
    own = load(file, {"netns": ["blue"]})
    told = from_published(json.loads(json.dumps(own.published())))
    assert own.config == told.config
    assert f"from the daemon ({file})" == told.settings["mode"].source
    assert "from the daemon (command line)" == told.settings["netns"].source


def test_what_another_version_publishes_is_refused_as_a_whole() -> None:
    """A key that is unknown here, or a value that is not allowed."""
    own = load(None, {}, default_file=NOWHERE).published()
    with pytest.raises(KeyError):
        from_published(own | {"mode.of_tomorrow": [1, "default"]})
    with pytest.raises(ValueError, match=r"^$"):
        from_published(own | {"mode": ["tomorrow", "default"]})


@pytest.mark.parametrize(
    ("text", "given", "found"),
    [
        ('pins = "/bpf/one"\nmode = "none"\nunknown = 1\n', None, Path("/bpf/one")),
        ('pins = "/bpf/one"\n', "/bpf/two", Path("/bpf/two")),
        ("mode = 3\n", None, Path("/sys/fs/bpf/twctl")),
        ("capacity = [\n 'pins' = '/bpf/one'  # as always\n", None, Path("/bpf/one")),
        ("pins = [\n", None, Path("/sys/fs/bpf/twctl")),
        ("pins = [\n", "/bpf/two", Path("/bpf/two")),
    ],
)
def test_the_pins_are_told_where_the_rest_is_refused(tmp_path: Path, text: str, given: str | None, found: Path) -> None:
    """Also where that is no TOML; there may be no file at all."""
    file = tmp_path / "twctl.toml"
    file.write_text(text)
    assert found == pins_of(file, {"pins": given})
    assert found == pins_of(None, {"pins": given}, default_file=file)
    assert Path("/sys/fs/bpf/twctl") == pins_of(NOWHERE, {})

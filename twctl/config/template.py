"""The configuration file to begin with: every key with its default, commented out."""

import json
from collections.abc import Mapping

from twctl.config.keys import FOLLOW
from twctl.config.settings import Key

HEAD = """\
# twctl's configuration (TOML). Each key stands here with its default, commented out. `twctl config` shows the values in
# force. After a change: `systemctl reload twctl`; what cannot be had changes nothing, and the log says why.
"""
# What a key or a table is for; what is allowed comes from the key itself.
ABOUT = {
    "mode": "observe changes nothing; truncate ends TIME_WAIT early; vestigial keeps a record in place of the socket",
    "listen": "address of the metrics",
    "netns": "network namespaces to work in, by their names; none: the one twctl is started in. Needs CAP_SYS_ADMIN",
    "all_netns": "work in the one twctl is started in and in every other that has a name, as they come and go",
    "pins": "folder under bpffs for programs and maps",
    "probe": "how entries are seen; auto: fentry where the kernel allows it, else the tracepoint",
    "reconcile_interval": "seconds between comparisons of the table with the kernel's list of sockets",
    "force": "start mode vestigial although something may hide packets from the guard (XDP, IPsec)",
    "time_wait": "seconds that a session stays in TIME_WAIT, by class; in mode observe only for the dry run in status",
    "fin_wait2": "the same for orphans in FIN_WAIT2; 60 and more: as long as the kernel keeps them",
    "reuse_age": "mode vestigial, for firewalls that cannot bear a quick reuse: seconds that a session must be old "
    "before connect() gets its tuple; it stands still meanwhile, for a second or more",
    "capacity.ipv4": "sessions that the table holds before it evicts the oldest, 48 bytes each",
    "capacity.ipv6": "the same, 80 bytes each",
    "classes": "prefixes whose class is set by hand, instead of by the routes",
    "tls": "PEM files for HTTPS; with client_ca, clients must show a certificate of it",
    "sysctl": "sysctls that are set while twctl runs; afterwards they have the value they had before",
    "pressure": "mode truncate: when memory is low, drain; when ports run out (port_headroom), shorter TIME_WAIT. Mode "
    "vestigial: above so many orphans (2.2 kB each) those in FIN_WAIT2 become vestiges, too",
    "pressure.floor": "seconds; port_headroom makes TIME_WAIT no shorter",
    "connect": "how long connect() looks for a local port is measured for one second of so many",
    "blame": "metrics of single destinations and parties, which have labels of their own",
}
# Keys that are unset by default: a value to begin with.
EXAMPLES: dict[str, object] = {
    "tls.certfile": "/etc/twctl/cert.pem",
    "tls.keyfile": "/etc/twctl/key.pem",
    "tls.client_ca": "/etc/twctl/ca.pem",
    "sysctl.tcp_fin_timeout": 30,
    "sysctl.tcp_tw_reuse": 1,
    "sysctl.tcp_tw_reuse_delay": 1000,
    "sysctl.tcp_max_tw_buckets": 262144,
    "sysctl.nf_conntrack_tcp_timeout_time_wait": FOLLOW,
}


def template(keys: Mapping[str, Key]) -> str:
    """Return the file; what is unset by default has an example."""
    lines = [HEAD.rstrip()]
    table = ""
    for name, key in keys.items():
        outer, _, last = name.rpartition(".")
        if outer != table:
            lines += ["", f"[{outer}]  # {ABOUT[outer]}"]
            table = outer
        if not outer:
            lines += ["", f"# {ABOUT[name]}"]
        value = json.dumps(EXAMPLES[name] if key.default is None else key.default)
        lines.append(f"{f'#{last} = {value}':<34} # {key.allowed}")
    return "\n".join(lines) + "\n"

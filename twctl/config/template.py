"""The configuration file to begin with: every key with its default, commented out."""

import json
from collections.abc import Mapping

from twctl.config.settings import Key

HEAD = """\
# twctl's configuration (TOML). Each key stands here with its default, commented out; `twctl config` shows what is in
# force, and `systemctl reload twctl` reads the file again: a bad one changes nothing and says so.
"""
# What a key or a table is for; what is allowed comes from the key itself.
ABOUT = {
    "mode": "observe changes nothing; truncate ends TIME_WAIT in time; vestigial keeps a record in place of the socket",
    "listen": "where metrics are served",
    "netns": "network namespaces to work in; none: twctl's own. The unit says which right that needs",
    "all_netns": "twctl's own and every other that has a name, as they come and go",
    "pins": "folder under bpffs",
    "probe": "what sees sessions being born; auto: fentry where the kernel allows it",
    "reconcile_interval": "seconds between comparisons with the kernel's list",
    "force": "mode vestigial also where something may hide packets from the guard",
    "time_wait": "how long a session stays, by nearness of its peer; in mode observe for status's dry run only",
    "fin_wait2": "the same for FIN_WAIT2 without an owner; 60 s and more: as long as the kernel keeps them",
    "capacity.ipv4": "sessions that the table holds before the oldest is evicted, 48 bytes each",
    "capacity.ipv6": "the same, 80 bytes each",
    "classes": "prefixes that override what the routes say",
    "tls": "PEM files for HTTPS; client_ca makes client certificates a must",
    "sysctl": "set while twctl runs; what was there comes back",
    "pressure": "mode truncate drains while memory is short, and shrinks time_wait where ports are (port_headroom)",
    "pressure.floor": "port_headroom shrinks time_wait no further than to these seconds",
    "blame": "in metrics: destinations whose ports are nearest to their end, and parties with the most entries",
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
    "sysctl.nf_conntrack_tcp_timeout_time_wait": 120,
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

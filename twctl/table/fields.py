"""The kernel's fields and functions that the C code of bpf/ reads or hooks, and their places as macros for it."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping

from twctl.errors import TwctlError
from twctl.linux.btf import VMLINUX, Btf, Field

REQUIRED = (
    "sock_common.skc_daddr",
    "sock_common.skc_rcv_saddr",
    "sock_common.skc_dport",
    "sock_common.skc_family",
    "sock_common.skc_bound_dev_if",
    "sock_common.skc_net",
    "sock_common.skc_v6_daddr",
    "sock_common.skc_v6_rcv_saddr",
    "sock_common.skc_flags",
    "sock.sk_protocol",
    "sock.sk_err",
    "sock.sk_uid",
    "inet_sock.inet_sport",
    "inet_connection_sock.icsk_rto",
    "tcp_sock.snd_nxt",
    "tcp_sock.rcv_nxt",
    "tcp_sock.snd_una",
    "tcp_sock.write_seq",
    "tcp_sock.rcv_wup",
    "tcp_sock.rcv_wnd",
    "tcp_sock.tsoffset",
    "tcp_sock.linger2",
    "tcp_sock.fastopen_connect",
    "tcp_sock.rx_opt.ts_recent",
    "tcp_sock.rx_opt.ts_recent_stamp",
    "tcp_sock.rx_opt.rcv_wscale",
    "net.net_cookie",
    "net.ipv4.sysctl_tcp_fin_timeout",
    "inet_timewait_sock.tw_sport",
    "inet_timewait_sock.tw_substate",
    "inet_timewait_sock.tw_timer",
    "tcp_timewait_sock.tw_ts_recent",
    "inet_sock.tos",
    "inet_sock.pinet6",
    "ipv6_pinfo.tclass",
    "ipv6_pinfo.flow_label",
    "sock.sk_txhash",
    "sock.sk_dst_cache",
    "dst_entry.dev",
    "net_device.ifindex",
    "sock.sk_bpf_storage",
    "bpf_local_storage.list.first",
    "bpf_local_storage_elem.snode",
    "bpf_local_storage_elem.sdata",
    "bpf_local_storage_data.data",
)
# Absent where the kernel is older or built without: microsecond timestamps (6.7), TCP-MD5, TCP-AO (6.7). An orphan's
# timer and whether a socket is transparent lie in one of two places; conntrack may be a module.
OPTIONAL = (
    "tcp_sock.tcp_usec_ts",
    "tcp_sock.md5sig_info",
    "tcp_sock.ao_info",
    "sock.sk_timer.expires",
    "sock.sk_timer.entry.pprev",
    "inet_connection_sock.icsk_keepalive_timer.expires",
    "inet_connection_sock.icsk_keepalive_timer.entry.pprev",
    "inet_sock.transparent",
    "inet_sock.inet_flags",
    "nf_conn.status",
    "sk_buff._nfct",
)
# Which cgroup a socket belongs to: all three, or none where the kernel is built without.
CGROUP = ("sock.sk_cgrp_data", "cgroup.kn", "kernfs_node.id")
# What the guard reads besides, where a segment has a vestige.
GUARD = (
    "sk_buff.dev",
    "sk_buff._skb_refdst",
    "sk_buff.ip_summed",
    "dst_entry.dev",
    "sock_common.skc_net",
    "net_device.nd_net",
    "net_device.dev_addr",
    "net_device.rx_handler",
    "net_device.ip_ptr",
    "net_device.ip6_ptr",
    "in_device.cnf.data",
    "ipv4_devconf.data",
    "net.ipv4.devconf_all",
    "inet6_dev.cnf.hop_limit",
    "net.ipv4.sysctl_tcp_rfc1337",
    "net.ipv4.sysctl_tcp_invalid_ratelimit",
    "net.ipv4.sysctl_ip_default_ttl",
)
FUNCTIONS = ("tcp_timewait_state_process", "tcp_twsk_unique")


# Where a field is if the kernel itself has not got it, and the module is loaded.
MODULES = {"nf_conn.status": "nf_conntrack"}


def _of_module(btf: Btf, path: str) -> Field | None:
    types = VMLINUX.with_name(MODULES.get(path, "none"))
    if not types.exists():
        return None
    with contextlib.closing(Btf(types, btf)) as module:
        return module.field(path)


def macros(btf: Btf, required: tuple[str, ...] = REQUIRED) -> Mapping[str, int]:
    """Name the offsets as the C code does: OFFSET_*, BIT_*, BITS_* and ARGUMENTS_*.

    :raises TwctlError: naming the first field that this kernel lacks.
    """
    result: dict[str, int] = {}
    for path in required + OPTIONAL:
        field = btf.field(path) or _of_module(btf, path)
        if field is None and path in required:
            raise TwctlError(
                f"this kernel's type information has no field {path}",
                "twctl works on Linux 5.15 and later; please report this kernel",
            )
        if field is not None:
            result |= _field_macros(path.replace(".", "_"), field)
    cgroup = {path: field for path in CGROUP if (field := btf.field(path))}
    if len(cgroup) == len(CGROUP):
        for path, field in cgroup.items():
            result |= _field_macros(path.replace(".", "_"), field)
    for function in FUNCTIONS:
        if (count := btf.arguments(function)) is not None:
            result[f"ARGUMENTS_{function}"] = count
    return result


def _field_macros(name: str, field: Field) -> dict[str, int]:
    result = {f"OFFSET_{name}": field.offset}
    if field.bits:
        result |= {f"BIT_{name}": field.bit, f"BITS_{name}": field.bits}
    return result

"""Route netlink messages newer than pyroute2's, declared the way it declares its own, and its decoder with them.

pyroute2 0.9.7 has no class for nexthop objects (ip-nexthop(8)), and does not name the attributes by which a route
refers to one and a filter tells its BPF program. Sources: linux/rtnetlink.h, linux/nexthop.h, linux/pkt_cls.h.
"""

import struct
from collections.abc import Iterator

from pyroute2.netlink import NLA_F_NESTED, nla, nla_string, nlmsg
from pyroute2.netlink.rtnl import RTM_DELROUTE, RTM_NEWROUTE, RTM_NEWTFILTER
from pyroute2.netlink.rtnl.marshal import MarshalRtnl
from pyroute2.netlink.rtnl.rtmsg import rtmsg_base
from pyroute2.netlink.rtnl.tcmsg import tcmsg

RTM_NEWNEXTHOP, RTM_DELNEXTHOP, RTM_GETNEXTHOP = 104, 105, 106
RTNLGRP_NEXTHOP = 32


class RouteMessage(rtmsg_base, nlmsg):  # type: ignore[misc]
    """struct rtmsg with pyroute2's attributes and RTA_NH_ID, the nexthop object that a route uses."""

    nla_map = (
        *rtmsg_base.nla_map,
        ("RTA_PAD", "hex"),
        ("RTA_UID", "uint32"),
        ("RTA_TTL_PROPAGATE", "uint8"),
        ("RTA_IP_PROTO", "uint8"),
        ("RTA_SPORT", "be16"),
        ("RTA_DPORT", "be16"),
        ("RTA_NH_ID", "uint32"),
    )


class NexthopMessage(nlmsg):  # type: ignore[misc]
    """struct nhmsg: a nexthop object. NHA_GROUP's value is the list of its members' ids."""

    prefix = "NHA_"
    fields = (("family", "B"), ("scope", "B"), ("protocol", "B"), ("resvd", "B"), ("flags", "I"))
    nla_map = (
        ("NHA_UNSPEC", "none"),
        ("NHA_ID", "uint32"),
        ("NHA_GROUP", "group"),
        ("NHA_GROUP_TYPE", "uint16"),
        ("NHA_BLACKHOLE", "flag"),
        ("NHA_OIF", "uint32"),
        ("NHA_GATEWAY", "target"),
    )

    class group(nla_string):  # type: ignore[misc]  # noqa: N801 - pyroute2 finds it by the name in nla_map
        """An array of struct nexthop_grp: id, weight."""

        def decode(self) -> None:
            """See nla_string."""
            nla_string.decode(self)
            self.value = [number for (number,) in struct.iter_unpack("=I4x", self["value"])]


class FilterMessage(nlmsg):  # type: ignore[misc]
    """struct tcmsg of a TC filter. TCA_OPTIONS can be read where TCA_KIND is `bpf`."""

    prefix = "TCA_"
    fields = tcmsg.fields
    nla_map = ((1, "TCA_KIND", "asciiz"), (2, "TCA_OPTIONS", "bpf"))

    class bpf(nla):  # type: ignore[misc]  # noqa: N801 - as above
        """Of them what tells whose filter it is."""

        nla_flags = NLA_F_NESTED
        prefix = "TCA_BPF_"
        nla_map = ((3, "TCA_BPF_CLASSID", "uint32"), (7, "TCA_BPF_NAME", "asciiz"), (11, "TCA_BPF_ID", "uint32"))


# In addition to pyroute2's own (its register_policy): message type to class.
POLICY = {
    RTM_NEWROUTE: RouteMessage,
    RTM_DELROUTE: RouteMessage,
    RTM_NEWNEXTHOP: NexthopMessage,
    RTM_DELNEXTHOP: NexthopMessage,
    RTM_NEWTFILTER: FilterMessage,
}

_marshal = MarshalRtnl()
_marshal.msg_map.update(POLICY)


def decode(data: bytes) -> Iterator[nlmsg]:
    """What pyroute2 makes of the messages in a buffer, one after the other."""
    return _marshal.parse(data)  # type: ignore[no-any-return]

"""Messages that pyroute2 has no class for, or lacks an attribute of, are decoded as its own are."""

import socket
import struct

from pyroute2.netlink import nlmsg

from twctl.linux.rtnl import RTM_DELNEXTHOP, RTM_NEWNEXTHOP, NexthopMessage, RouteMessage, decode

# include/uapi/linux/rtnetlink.h, pkt_cls.h
RTM_NEWROUTE, RTM_NEWTFILTER, RTM_NEWLINK = 24, 44, 16
TCA_KIND, TCA_OPTIONS, TCA_BPF_CLASSID, TCA_BPF_NAME, TCA_BPF_ID = 1, 2, 3, 7, 11


def raw(type_: int, body: bytes) -> bytes:
    """A netlink message."""
    return struct.pack("=IHHII", 16 + len(body), type_, 0, 0, 0) + body


def attribute(type_: int, value: bytes) -> bytes:
    """One attribute with its padding."""
    return struct.pack("=HH", 4 + len(value), type_) + value + bytes(-len(value) % 4)


def one(data: bytes) -> nlmsg:
    """The only message of a buffer, decoded."""
    (found,) = decode(data)
    return found


def test_route_names_its_nexthop_object() -> None:
    """RTA_NH_ID, next to the attributes that pyroute2 knows."""
    message = RouteMessage()
    message.update(family=socket.AF_INET, dst_len=24)
    message["attrs"] = [("RTA_DST", "10.0.0.0"), ("RTA_NH_ID", 31)]
    message["header"]["type"] = RTM_NEWROUTE
    message.encode()
    found = one(bytes(message.data))
    assert (found.get_attr("RTA_DST"), found.get_attr("RTA_NH_ID")) == ("10.0.0.0", 31)


def test_nexthop_objects_have_a_class() -> None:
    """Both that come and that go."""
    body = struct.pack("=BBBBI", 2, 0, 3, 0, 0) + attribute(1, struct.pack("=I", 7))
    for type_ in (RTM_NEWNEXTHOP, RTM_DELNEXTHOP):
        found = one(raw(type_, body))
        assert isinstance(found, NexthopMessage)
        assert (found.get_attr("NHA_ID"), found.get_attr("NHA_GROUP"), found["protocol"]) == (7, None, 3)


def test_filter_tells_its_program() -> None:
    """Name, id and class ID of a BPF filter; those of another kind have options that are not looked at."""
    options = (
        attribute(TCA_BPF_CLASSID, struct.pack("=I", 0x20017))
        + attribute(TCA_BPF_NAME, b"twctl_ingress\0")
        + attribute(TCA_BPF_ID, struct.pack("=I", 4711))
    )
    place = struct.pack("=BxHiIII", 0, 0, 2, 0x7477, 0xFFFFFFF2, 1 << 16)
    found = one(raw(RTM_NEWTFILTER, place + attribute(TCA_KIND, b"bpf\0") + attribute(TCA_OPTIONS, options)))
    bpf = found.get_attr("TCA_OPTIONS")
    assert (bpf.get_attr("TCA_BPF_NAME"), bpf.get_attr("TCA_BPF_ID")) == ("twctl_ingress", 4711)
    assert 0x20017 == bpf.get_attr("TCA_BPF_CLASSID")
    assert (found["index"], found["handle"], found["parent"]) == (2, 0x7477, 0xFFFFFFF2)
    other = one(raw(RTM_NEWTFILTER, place + attribute(TCA_KIND, b"u32\0") + attribute(TCA_OPTIONS, b"\1\2\3")))
    assert other.get_attr("TCA_KIND") == "u32"


def test_messages_of_a_buffer_come_in_order() -> None:
    """Also of several types."""
    link, nexthop = raw(RTM_NEWLINK, bytes(16)), raw(RTM_NEWNEXTHOP, bytes(8))
    assert [each["header"]["type"] for each in decode(link + nexthop + link)] == [
        RTM_NEWLINK,
        RTM_NEWNEXTHOP,
        RTM_NEWLINK,
    ]

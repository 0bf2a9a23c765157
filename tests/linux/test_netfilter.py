"""What is read of netfilter without a kernel; tests/kernel/test_obstacles.py has the rest."""

from twctl.linux.netfilter import count_services

LISTED = """IP Virtual Server version 1.2.1 (size=4096)
Prot LocalAddress:Port Scheduler Flags
  -> RemoteAddress:Port Forward Weight ActiveConn InActConn
TCP  0A000001:0050 rr
  -> 0A000002:0050      Masq    1      0          0
UDP  0A000001:0035 rr
FWM  00000001 wlc
"""


def test_services_of_ipvs_are_counted() -> None:
    """Those for TCP and for marked packets; a module that was loaded and has none is no obstacle."""
    assert 2 == count_services(LISTED)
    assert 0 == count_services("".join(LISTED.splitlines(keepends=True)[:3]))

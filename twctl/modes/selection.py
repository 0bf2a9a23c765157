"""Which of the sessions that the walk of a ring finds are wanted: by remote address, local port, owner."""

import dataclasses
import ipaddress
from collections.abc import Callable

from twctl.addresses import Network
from twctl.modes.truncate import Due
from twctl.table.records import SLOT_MASK
from twctl.table.shared import STRUCTS

REQUEST = STRUCTS["diag_request"].packer(("local_port", "remote"), raw=("local_port", "remote"))
ADDRESS_BYTES = {"ipv4": 4, "ipv6": 16}


@dataclasses.dataclass(frozen=True, slots=True)
class Selection:
    """None: any. remote: prefix of the remote address; owned: whether the session of a family and a slot is whose."""

    remote: Network | None = None
    local_port: int | None = None
    owned: Callable[[str, int], bool] | None = None

    def takes(self, family: str, due: Due) -> bool:
        """Whether a session is wanted."""
        local_port, remote = REQUEST.unpack_from(due.request)
        return (
            self.local_port in {None, int.from_bytes(local_port, "big")}
            and (self.remote is None or ipaddress.ip_address(remote[: ADDRESS_BYTES[family]]) in self.remote)
            and (self.owned is None or self.owned(family, due.word & SLOT_MASK))
        )

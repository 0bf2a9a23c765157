"""What the daemon may do after its start: what a reload may need, and no more."""

from twctl.config.config import Config
from twctl.errors import TwctlError
from twctl.linux import capabilities
from twctl.linux.capabilities import Capability
from twctl.table.pins import Pins

# A reload reads files, binds an address, and may have to load again.
ALWAYS = (
    Capability.DAC_READ_SEARCH,
    Capability.NET_BIND_SERVICE,
    Capability.NET_ADMIN,
    Capability.SYS_RESOURCE,
    Capability.PERFMON,
    Capability.BPF,
)


def give_up(config: Config, pins: Pins) -> None:
    """Give up what neither this configuration nor a reload needs, for good.

    CAP_SYS_ADMIN stays where other namespaces are entered, and where a bpffs has to be unmounted at the end.
    """
    needed = enters_others(config) or pins.mounted
    capabilities.keep(*ALWAYS, *([Capability.SYS_ADMIN] if needed else []))


def refuse(config: Config) -> None:
    """Refuse a configuration for which a right is missing.

    :raises TwctlError: if it names network namespaces that cannot be entered.
    """
    if enters_others(config) and not capabilities.permitted(Capability.SYS_ADMIN):
        hint = "allow it as namespaces.conf does; a daemon that was started without them gave it up: restart it"
        raise TwctlError("other network namespaces need CAP_SYS_ADMIN", hint)


def enters_others(config: Config) -> bool:
    """Whether a configuration names network namespaces, or wants all."""
    return bool(config.netns) or config.all_netns

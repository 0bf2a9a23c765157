"""How long sessions stay in each mode."""

import math

from twctl.classes import Class
from twctl.config.config import Config
from twctl.config.keys import Mode
from twctl.linux.tcp import KERNEL_TIME_WAIT
from twctl.modes.truncate import Limits
from twctl.table.records import Vestige


def limits_of(config: Config) -> Limits:
    """How long mode truncate lets a session stay. 60 s and more in FIN_WAIT2: as long as the kernel keeps it."""
    fin_wait2 = {
        class_: seconds if seconds < KERNEL_TIME_WAIT else math.inf for class_, seconds in config.fin_wait2.items()
    }
    return Limits(config.time_wait, fin_wait2)


def time_wait_in_force(config: Config) -> dict[Class, float]:
    """Seconds (float) that sessions of each class really stay: in mode observe as long as the kernel keeps them."""
    return dict.fromkeys(Class, KERNEL_TIME_WAIT) if config.mode is Mode.OBSERVE else dict(config.time_wait)


def goes_in(vestige: Vestige, config: Config) -> float:
    """Seconds (float) until mode truncate ends a session, or the kernel's own timer if that is sooner."""
    limits = limits_of(config)
    limit = (limits.fin_wait2 if vestige.substate == "FIN_WAIT2" else limits.time_wait)[vestige.class_]
    return max(0.0, min(vestige.expires_in, limit - vestige.age))

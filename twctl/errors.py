"""The one exception that users see, and its kinds: what they typed is wrong; what passes by itself."""


class TwctlError(Exception):
    """Something failed in a way that the user can act on.

    message: str, what failed; hint: str, what to do about it. Both fit on one line together. status: int, exit status;
    of_service: that of a daemon that a service manager has started.
    """

    status = of_service = 1

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message, hint)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})"


class UsageError(TwctlError):
    """What was typed on the command line is wrong."""

    status = of_service = 2


class BusyError(TwctlError):
    """Another process has what is needed; a later try may find it free."""

    of_service = 75  # EX_TEMPFAIL of sysexits.h, which systemd shows by its name

"""Whether a mode can work on this kernel and host: tried for real before anything is changed."""

import contextlib
import ipaddress
import logging
import socket

from twctl.addresses import Endpoint
from twctl.config.config import Config
from twctl.config.keys import Mode
from twctl.errors import TwctlError
from twctl.linux.netns import cookie, inside_new, lo_up
from twctl.linux.sockdiag import SockDiag
from twctl.linux.sockdiag_messages import TIMER_TIME_WAIT, destroy_request, exact_request, read_answer
from twctl.modes.obstacles import obstacles

log = logging.getLogger("twctl")


def refuse(config: Config) -> None:
    """Refuse what cannot work, before anything is made.

    :raises TwctlError: if the mode or a namespace of the configuration cannot be had.
    """
    if config.mode is Mode.TRUNCATE:
        can_destroy()
    for netns in config.netns or (None,):
        if not config.all_netns:
            _refuse_obstacles(netns, config)
        cookie(netns)  # whether it can be entered


def _refuse_obstacles(netns: str | None, config: Config) -> None:
    """Mode vestigial works only where the guard sees what the sockets see.

    :raises TwctlError: if something may be in its way, and `force` is not set.
    """
    found = list(obstacles(netns)) if config.mode is Mode.VESTIGIAL else []
    for each in found:
        log.warning("network namespace %s: %s", netns or "(own)", each.text)
    if found and not config.force:
        raise TwctlError("the guard may not see here what the sockets see", "remove it, or give --force if you know")


def can_destroy(hint: str = "mode truncate needs Linux 6.0 and CONFIG_INET_DIAG_DESTROY=y; use mode observe") -> str:
    """Destroy a TIME_WAIT socket for real, of a connection made for it, in a namespace of its own where it can be.

    hint: what to do where the kernel cannot.

    :raises TwctlError: if this kernel cannot: before 6.0, or without CONFIG_INET_DIAG_DESTROY.
    """
    try:
        (diag, ends), ours = inside_new(_new_time_wait_socket), False
    except TwctlError:  # that needs CAP_SYS_ADMIN, and mode truncate does not
        (diag, ends), ours = _our_time_wait_socket(), True
    request = exact_request(*ends)
    with contextlib.closing(diag):
        answer = read_answer(diag.ask([request])[0])
        if ours and answer is None:  # tcp_max_tw_buckets=0, which mode vestigial leaves to the mode after it
            return "not tried: it needs CAP_SYS_ADMIN, or TIME_WAIT sockets in this namespace"
        if answer is None or answer.timer != TIMER_TIME_WAIT:
            raise TwctlError("the kernel does not show a TIME_WAIT socket it was asked for", "modprobe tcp_diag")
        if diag.destroy([destroy_request(request, answer.cookie)]):
            raise TwctlError("this kernel does not destroy TIME_WAIT sockets", hint)
    return "the kernel destroys TIME_WAIT sockets"


_Made = tuple[SockDiag, tuple[Endpoint, Endpoint]]


def _new_time_wait_socket() -> _Made:
    lo_up()
    return _time_wait_socket()


def _our_time_wait_socket() -> _Made:
    try:
        return _time_wait_socket()
    except OSError as error:
        raise TwctlError(f"cannot make a connection over lo: {error.strerror}", "ip link set lo up") from error


def _time_wait_socket() -> _Made:
    """Close a connection over lo; the client, which closes first, stays in TIME_WAIT."""
    diag = SockDiag()
    with socket.create_server(("127.0.0.1", 0)) as server:
        client = socket.create_connection(server.getsockname())
        peer, _ = server.accept()
        local, remote = client.getsockname(), client.getpeername()
        client.close()
        peer.recv(1)
        peer.close()
    address = ipaddress.ip_address("127.0.0.1")
    return diag, ((address, local[1]), (address, remote[1]))

"""Numbers of the kernel's TCP that user space meets: states, and the length of TIME_WAIT."""

# include/net/tcp_states.h
TCP_FIN_WAIT1, TCP_FIN_WAIT2, TCP_TIME_WAIT, TCP_CLOSE = 4, 5, 6, 7
TCP_CLOSE_WAIT, TCP_LAST_ACK, TCP_LISTEN, TCP_CLOSING = 8, 9, 10, 11
TCP_BOUND_INACTIVE = 13  # in sock_diag alone, since Linux 6.8: bound to a port, and nothing else

# include/net/tcp.h, TCP_TIMEWAIT_LEN: seconds after which the kernel itself ends TIME_WAIT. It cannot be tuned.
KERNEL_TIME_WAIT = 60.0

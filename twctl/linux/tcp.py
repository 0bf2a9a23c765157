"""Numbers of the kernel's TCP that user space meets: states, and the length of TIME_WAIT."""

# include/net/tcp_states.h
TCP_FIN_WAIT2, TCP_TIME_WAIT, TCP_CLOSE, TCP_LISTEN = 5, 6, 7, 10

# include/net/tcp.h, TCP_TIMEWAIT_LEN: seconds after which the kernel itself ends TIME_WAIT. It cannot be tuned.
KERNEL_TIME_WAIT = 60.0

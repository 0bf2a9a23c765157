/*
 * closes: make TCP connections and close them in a stated way, as fast as the machine can.
 *
 * Three shapes, one program:
 *   closes --inline N   N threads, each plays both ends in turn: connect, accept, close, read the FIN, close.
 *                       Nothing is ever woken up, so this is the fastest and the most even one.
 *   closes              client threads against epoll server threads in the same process.
 *   closes --serve / closes --connect
 *                       the two halves apart, so that the ends can live in two network namespaces.
 *
 * Every thread has its own counters and is summed at the end: nothing is shared on the hot path but the ticket
 * counter (--count) and the brake between the two halves (see BACKLOG_LIMIT).
 *
 * The last line of standard output is one JSON object. Progress (--seconds) goes to standard error, a line a second.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <getopt.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#ifndef IP_BIND_ADDRESS_NO_PORT
#define IP_BIND_ADDRESS_NO_PORT 24 /* since 4.2 */
#endif

enum {
	MAX_THREADS = 64,
	MAX_ADDRESSES = 4096,
	MAX_ERRNO = 140, /* above EHWPOISON (133), the highest on Linux */
	MAX_SECONDS = 3600,
	MAX_BYTES = 1 << 20,
	/* connections made but not yet closed by the server half: a quarter of net.core.somaxconn (4096), beyond
	 * which SYNs would be dropped and come back after one second, and the latencies would be those of the drop */
	BACKLOG_LIMIT = 1024,
	/* latency histogram: 32 steps to each power of two, so a percentile is exact to 3 % */
	STEPS = 32,
	STEP_BITS = 5,
	BUCKETS = 40 * STEPS,
};

/* who sends the first FIN, and how; the other end closes when it has read that FIN */
enum close_way { CLIENT, SERVER, CLIENT_SHUTDOWN, SERVER_SHUTDOWN, RESET };

static const char *const close_names[] = { "client", "server", "client-shutdown", "server-shutdown", "reset" };

struct address {
	union {
		struct sockaddr any;
		struct sockaddr_in in;
		struct sockaddr_in6 in6;
	} to;
	socklen_t length;
};

struct worker {
	pthread_t thread;
	int index;
	int cpu; /* -1: not pinned */
	int epoll; /* server threads */
	int *listeners; /* inline: one to each server address and port */
	atomic_ulong made; /* read by the clock thread while it runs */
	atomic_ulong closed;
	uint64_t taken; /* bytes that a server has read */
	double waited; /* seconds in which it could have run and had no CPU */
	uint64_t failed[MAX_ERRNO];
	uint64_t latency[BUCKETS];
};

static struct {
	struct address servers[MAX_ADDRESSES];
	struct address sources[MAX_ADDRESSES];
	int n_servers, n_ports, n_sources;
	int first_source_port, n_source_ports; /* n 0: the kernel chooses */
	int n_clients, n_server_threads;
	int cpus[MAX_THREADS], n_cpus;
	bool inline_ends, serve, connect;
	enum close_way way;
	uint64_t count;
	uint64_t hold; /* connections that the server half never closes */
	double rate, seconds;
	size_t bytes;
} opt = { .n_clients = 1, .n_server_threads = 1 };

static struct worker clients[MAX_THREADS], servers[MAX_THREADS];
static atomic_ulong tickets, held;
static atomic_bool stopping; /* no new connections */
static atomic_bool servers_stop; /* later: a client's last connection still needs its server */
static char payload[MAX_BYTES];
static uint64_t started;

static void die(const char *what)
{
	fprintf(stderr, "closes: %s: %s\n", what, strerror(errno));
	exit(1);
}

static void usage(const char *what)
{
	fprintf(stderr, "closes: %s\n", what);
	exit(2);
}

static uint64_t now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* ---- latency ---- */

static int bucket_of(uint64_t ns)
{
	int shift;

	if (ns < STEPS)
		return (int)ns;
	shift = 63 - __builtin_clzll(ns) - STEP_BITS;
	int bucket = (shift + 1) * STEPS + (int)((ns >> shift) & (STEPS - 1));
	return bucket < BUCKETS ? bucket : BUCKETS - 1;
}

static uint64_t bucket_ns(int bucket)
{
	if (bucket < STEPS)
		return (uint64_t)bucket;
	return (uint64_t)(STEPS + bucket % STEPS) << (bucket / STEPS - 1);
}

static double percentile_us(const uint64_t *all, double share)
{
	uint64_t total = 0, seen = 0;

	for (int i = 0; i < BUCKETS; i++)
		total += all[i];
	for (int i = 0; i < BUCKETS; i++) {
		seen += all[i];
		if (seen && (double)seen >= share * (double)total)
			return (double)bucket_ns(i) / 1000.0;
	}
	return 0;
}

/* ---- sockets ---- */

static void set(int fd, int level, int name, int value)
{
	if (setsockopt(fd, level, name, &value, sizeof(value)))
		die("setsockopt");
}

static int listen_on(const struct address *at)
{
	int fd = socket(at->to.any.sa_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);

	if (fd < 0)
		die("socket");
	set(fd, SOL_SOCKET, SO_REUSEADDR, 1);
	/* every server thread has its own listener, and the kernel spreads the connections over them; an inline
	 * thread must accept its own connection, so there each thread has ports of its own instead */
	if (!opt.inline_ends)
		set(fd, SOL_SOCKET, SO_REUSEPORT, 1);
	if (bind(fd, &at->to.any, at->length))
		die("bind (server)");
	if (listen(fd, 65535))
		die("listen");
	return fd;
}

/*
 * What a connection binds to before it connects. False: to nothing. With --source-ports no two connections have the
 * same tuple before all are used up. The kernel does not promise that: where the server closes first, the client's end
 * leaves nothing behind, and connect() soon gives out a port that the server still has in TIME_WAIT.
 */
static bool source_of(uint64_t ticket, struct address *from)
{
	uint64_t turn = ticket / (uint64_t)opt.n_servers;

	if (!opt.n_sources)
		return false;
	*from = opt.sources[turn % (uint64_t)opt.n_sources];
	if (opt.n_source_ports)
		from->to.in.sin_port = htons((uint16_t)(
			opt.first_source_port + turn / (uint64_t)opt.n_sources % (uint64_t)opt.n_source_ports));
	return true;
}

/* A connected socket, or -errno. The time of connect() alone is the latency: it holds the search for a local port. */
static int connect_to(struct worker *w, const struct address *to, const struct address *from)
{
	int fd = socket(to->to.any.sa_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
	uint64_t before;

	if (fd < 0)
		return -errno;
	if (from) {
		/* the port is chosen in connect(), where the whole tuple is known: without this every source
		 * address would have 28k ports altogether and not 28k to each destination */
		if (!opt.n_source_ports)
			set(fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1);
		else /* the port may be in TIME_WAIT with another destination */
			set(fd, SOL_SOCKET, SO_REUSEADDR, 1);
		if (bind(fd, &from->to.any, from->length))
			goto fail;
	}
	before = now_ns();
	if (connect(fd, &to->to.any, to->length))
		goto fail;
	w->latency[bucket_of(now_ns() - before)]++;
	return fd;
fail:;
	int error = errno;
	close(fd);
	return -error;
}

static bool write_all(int fd)
{
	size_t done = 0;

	while (done < opt.bytes) {
		ssize_t n = send(fd, payload, opt.bytes - done, MSG_NOSIGNAL);
		if (n <= 0)
			return false;
		done += (size_t)n;
	}
	return true;
}

static void reset(int fd)
{
	struct linger now = { .l_onoff = 1, .l_linger = 0 };

	setsockopt(fd, SOL_SOCKET, SO_LINGER, &now, sizeof(now));
	close(fd);
}

/* Reads until the other end's FIN. False: something else ended it. */
static bool read_to_end(int fd)
{
	char sink[65536];
	ssize_t n;

	do
		n = recv(fd, sink, sizeof(sink), 0);
	while (n > 0);
	return n == 0;
}

static bool read_payload(int fd)
{
	char sink[65536];
	size_t done = 0;

	while (done < opt.bytes) {
		size_t want = opt.bytes - done < sizeof(sink) ? opt.bytes - done : sizeof(sink);
		ssize_t n = recv(fd, sink, want, 0);
		if (n <= 0)
			return false;
		done += (size_t)n;
	}
	return true;
}

/* The client's half of the close, after its payload was sent. */
static void client_ends(struct worker *w, int fd)
{
	switch (opt.way) {
	case CLIENT:
		close(fd);
		return;
	case RESET:
		reset(fd);
		return;
	case CLIENT_SHUTDOWN:
		shutdown(fd, SHUT_WR);
		break;
	case SERVER:
	case SERVER_SHUTDOWN:
		break;
	}
	if (!read_to_end(fd))
		w->failed[errno < MAX_ERRNO ? errno : 0]++;
	close(fd);
}

/* ---- both ends in one thread ---- */

/* Each thread listens on ports of its own, which follow those of the thread before it. */
static struct address own_server(const struct worker *w, int which)
{
	struct address to = opt.servers[which];

	/* sin_port and sin6_port are the same two bytes */
	to.to.in.sin_port = htons((uint16_t)(ntohs(to.to.in.sin_port) + w->index * opt.n_ports));
	return to;
}

static void one_inline(struct worker *w, uint64_t ticket)
{
	int which = (int)(ticket % (uint64_t)opt.n_servers);
	struct address from;
	bool bound = source_of(ticket, &from);
	struct address to = own_server(w, which);
	int near = connect_to(w, &to, bound ? &from : NULL), far;

	if (near < 0) {
		w->failed[-near < MAX_ERRNO ? -near : 0]++;
		return;
	}
	if (!write_all(near))
		w->failed[errno < MAX_ERRNO ? errno : 0]++;
	/* on loopback and veth the handshake is over when connect() returns, but its last ACK may still be in
	 * another CPU's backlog: then accept() says EAGAIN for some microseconds */
	while ((far = accept4(w->listeners[which], NULL, NULL, SOCK_CLOEXEC)) < 0) {
		if (errno != EAGAIN && errno != ECONNABORTED) {
			w->failed[errno < MAX_ERRNO ? errno : 0]++;
			close(near);
			return;
		}
		sched_yield();
	}
	atomic_fetch_add_explicit(&w->made, 1, memory_order_relaxed);
	if (opt.bytes)
		read_payload(far);
	switch (opt.way) {
	case CLIENT:
		close(near);
		read_to_end(far);
		close(far);
		break;
	case SERVER:
		close(far);
		read_to_end(near);
		close(near);
		break;
	case CLIENT_SHUTDOWN:
		shutdown(near, SHUT_WR);
		read_to_end(far);
		close(far);
		read_to_end(near);
		close(near);
		break;
	case SERVER_SHUTDOWN:
		shutdown(far, SHUT_WR);
		read_to_end(near);
		close(near);
		read_to_end(far);
		close(far);
		break;
	case RESET:
		reset(near);
		close(far);
		break;
	}
	atomic_fetch_add_explicit(&w->closed, 1, memory_order_relaxed);
}

static void listen_inline(struct worker *w)
{
	w->listeners = calloc((size_t)opt.n_servers, sizeof(int));
	for (int i = 0; i < opt.n_servers; i++) {
		struct address at = own_server(w, i);
		w->listeners[i] = listen_on(&at);
	}
}

/* ---- client threads ---- */

static void brake(void)
{
	if (opt.connect)
		return; /* the servers are in another process; the listener's backlog is the only brake */
	for (;;) {
		uint64_t made = 0, closed = 0;
		for (int i = 0; i < opt.n_server_threads; i++)
			closed += atomic_load_explicit(&servers[i].closed, memory_order_relaxed);
		for (int i = 0; i < opt.n_clients; i++)
			made += atomic_load_explicit(&clients[i].made, memory_order_relaxed);
		if (made < closed + BACKLOG_LIMIT || atomic_load(&stopping))
			return;
		sched_yield();
	}
}

static void one_client(struct worker *w, uint64_t ticket)
{
	const struct address *to = &opt.servers[ticket % (uint64_t)opt.n_servers];
	struct address from;
	bool bound = source_of(ticket, &from);
	int fd;

	brake();
	fd = connect_to(w, to, bound ? &from : NULL);
	if (fd < 0) {
		w->failed[-fd < MAX_ERRNO ? -fd : 0]++;
		return;
	}
	atomic_fetch_add_explicit(&w->made, 1, memory_order_relaxed);
	if (!write_all(fd))
		w->failed[errno < MAX_ERRNO ? errno : 0]++;
	client_ends(w, fd);
	if (opt.connect)
		atomic_fetch_add_explicit(&w->closed, 1, memory_order_relaxed);
}

static void pin(const struct worker *w)
{
	cpu_set_t set;

	if (w->cpu < 0)
		return;
	CPU_ZERO(&set);
	CPU_SET(w->cpu, &set);
	if (pthread_setaffinity_np(pthread_self(), sizeof(set), &set))
		die("pin");
}

/* The second number of schedstat; 0 where the kernel does not count it. */
static double seconds_without_cpu(void)
{
	FILE *file = fopen("/proc/thread-self/schedstat", "r");
	unsigned long long ran, waited = 0;

	if (!file)
		return 0;
	if (fscanf(file, "%llu %llu", &ran, &waited) != 2)
		waited = 0;
	fclose(file);
	return (double)waited / 1e9;
}

static void *client_thread(void *arg)
{
	struct worker *w = arg;
	/* a fixed schedule, not a pause between connections: late ones catch up and the mean rate holds */
	double step = opt.rate > 0 ? 1e9 * opt.n_clients / opt.rate : 0;
	double due = (double)started + step * w->index / opt.n_clients;

	pin(w);
	while (!atomic_load_explicit(&stopping, memory_order_relaxed)) {
		uint64_t ticket = atomic_fetch_add_explicit(&tickets, 1, memory_order_relaxed);
		if (opt.count && ticket >= opt.count)
			break;
		if (step > 0) {
			struct timespec t = { (time_t)(due / 1e9), (long)((uint64_t)due % 1000000000u) };
			clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, NULL);
			due += step;
		}
		if (opt.inline_ends)
			one_inline(w, ticket);
		else
			one_client(w, ticket);
	}
	w->waited = seconds_without_cpu();
	return NULL;
}

/* ---- server threads ---- */

/* epoll data: bytes still to come before the server may close (--close server), above the file descriptor */
static uint64_t pack(int fd, uint64_t missing)
{
	return missing << 32 | (uint32_t)fd;
}

static void finish(struct worker *w, int fd)
{
	close(fd);
	atomic_fetch_add_explicit(&w->closed, 1, memory_order_relaxed);
}

/* The server's turn to close: true if the connection is done with. */
static bool server_closes(struct worker *w, int fd)
{
	if (opt.way == SERVER_SHUTDOWN) {
		shutdown(fd, SHUT_WR);
		return false; /* now wait for the client's FIN */
	}
	finish(w, fd);
	return true;
}

static void accept_all(struct worker *w, int listener)
{
	bool first = opt.way == SERVER || opt.way == SERVER_SHUTDOWN;

	for (;;) {
		int fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
		if (fd < 0) {
			if (errno == ECONNABORTED)
				continue;
			if (errno != EAGAIN)
				w->failed[errno < MAX_ERRNO ? errno : 0]++;
			return;
		}
		atomic_fetch_add_explicit(&w->made, 1, memory_order_relaxed);
		if (opt.hold && atomic_fetch_add(&held, 1) < opt.hold)
			continue;
		if (first && !opt.bytes && server_closes(w, fd))
			continue;
		struct epoll_event e = { .events = EPOLLIN, .data.u64 = pack(fd, first ? opt.bytes : 0) };
		if (epoll_ctl(w->epoll, EPOLL_CTL_ADD, fd, &e))
			die("epoll_ctl");
	}
}

static void readable(struct worker *w, struct epoll_event *e)
{
	int fd = (int)(uint32_t)e->data.u64;
	uint64_t missing = e->data.u64 >> 32;
	char sink[65536];

	for (;;) {
		ssize_t n = recv(fd, sink, sizeof(sink), 0);
		if (n == 0 || (n < 0 && errno != EAGAIN)) {
			finish(w, fd);
			return;
		}
		if (n < 0)
			break;
		w->taken += (uint64_t)n;
		if (missing && (missing -= (uint64_t)n < missing ? (uint64_t)n : missing) == 0 && server_closes(w, fd))
			return;
	}
	struct epoll_event again = { .events = EPOLLIN, .data.u64 = pack(fd, missing) };
	epoll_ctl(w->epoll, EPOLL_CTL_MOD, fd, &again);
}

static void listen_epoll(struct worker *w)
{
	w->epoll = epoll_create1(EPOLL_CLOEXEC);
	if (w->epoll < 0)
		die("epoll_create1");
	for (int i = 0; i < opt.n_servers; i++) {
		int fd = listen_on(&opt.servers[i]);
		struct epoll_event e = { .events = EPOLLIN, .data.u64 = UINT64_C(1) << 63 | (uint32_t)fd };
		if (epoll_ctl(w->epoll, EPOLL_CTL_ADD, fd, &e))
			die("epoll_ctl");
	}
}

static void *server_thread(void *arg)
{
	struct worker *w = arg;
	struct epoll_event events[256];

	pin(w);
	while (!atomic_load_explicit(&servers_stop, memory_order_relaxed)) {
		int n = epoll_wait(w->epoll, events, 256, 50);
		for (int i = 0; i < n; i++) {
			if (events[i].data.u64 >> 63)
				accept_all(w, (int)(uint32_t)events[i].data.u64);
			else
				readable(w, &events[i]);
		}
	}
	return NULL;
}

/* ---- options ---- */

static void raise_address(struct address *a, uint32_t by)
{
	uint32_t low;

	if (a->to.any.sa_family == AF_INET) {
		a->to.in.sin_addr.s_addr = htonl(ntohl(a->to.in.sin_addr.s_addr) + by);
		return;
	}
	memcpy(&low, &a->to.in6.sin6_addr.s6_addr[12], 4);
	low = htonl(ntohl(low) + by);
	memcpy(&a->to.in6.sin6_addr.s6_addr[12], &low, 4);
}

static struct address parse_address(const char *text, const char *family, uint16_t port)
{
	struct address a = { .length = sizeof(struct sockaddr_in) };
	char mapped[80];

	if (!strcmp(family, "ipv4")) {
		a.to.in.sin_family = AF_INET;
		a.to.in.sin_port = htons(port);
		if (inet_pton(AF_INET, text, &a.to.in.sin_addr) != 1)
			usage("not an IPv4 address");
		return a;
	}
	a.length = sizeof(struct sockaddr_in6);
	a.to.in6.sin6_family = AF_INET6;
	a.to.in6.sin6_port = htons(port);
	if (!strcmp(family, "mapped")) /* an AF_INET6 socket that speaks IPv4 */
		snprintf(mapped, sizeof(mapped), "::ffff:%s", text);
	else if (!strcmp(family, "ipv6"))
		snprintf(mapped, sizeof(mapped), "%s", text);
	else
		usage("--family is ipv4, ipv6 or mapped");
	if (inet_pton(AF_INET6, mapped, &a.to.in6.sin6_addr) != 1)
		usage("not an IPv6 address");
	return a;
}

/* "A,B,C+N": single addresses, or N addresses in a row from C. Each one with every port of first..last. */
static int parse_list(char *text, const char *family, int first, int last, struct address *out)
{
	int n = 0;

	for (char *one = strtok(text, ","); one; one = strtok(NULL, ",")) {
		char *plus = strchr(one, '+');
		int row = plus ? atoi(plus + 1) : 1;
		if (plus)
			*plus = 0;
		for (int i = 0; i < row; i++) {
			for (int port = first; port <= last; port++) {
				if (n == MAX_ADDRESSES)
					usage("too many addresses");
				out[n] = parse_address(one, family, (uint16_t)port);
				raise_address(&out[n++], (uint32_t)i);
			}
		}
	}
	return n;
}

static void parse_cpus(char *text)
{
	for (char *one = strtok(text, ","); one && opt.n_cpus < MAX_THREADS; one = strtok(NULL, ","))
		opt.cpus[opt.n_cpus++] = atoi(one);
}

static const char help[] =
	"closes: make TCP connections and close them in a stated way\n"
	"  --family ipv4|ipv6|mapped     mapped: AF_INET6 sockets with ::ffff: addresses (default ipv4)\n"
	"  --address A[,B][,C+N]         server addresses; C+N is N in a row (default loopback)\n"
	"  --port P[-Q]                  server ports (default 20000)\n"
	"  --source A[,B][,C+N]          client addresses, in turn (default: the kernel's choice)\n"
	"  --source-ports P-Q            client ports, in turn: no tuple twice before all were used\n"
	"  --count N | --seconds S       how many, or how long\n"
	"  --rate R                      connections a second; 0: as fast as possible (default)\n"
	"  --close client|server|client-shutdown|server-shutdown|reset   who sends the first FIN\n"
	"  --bytes N                     payload from the client before the close (default 0)\n"
	"  --threads N --server-threads N --cpus A,B   threads, and the CPUs they are pinned to in turn\n"
	"  --inline                      each client thread plays the server as well (fastest)\n"
	"  --hold N                      the server never closes the first N connections\n"
	"  --serve | --connect           one half only; --serve ends after --count, or on SIGTERM or SIGINT\n";

static void parse(int argc, char **argv)
{
	enum { FAMILY = 1, ADDRESS, PORT, SOURCE, SOURCE_PORTS, COUNT, SECONDS, RATE, CLOSE, BYTES, THREADS, SERVER_THREADS, CPUS,
	       INLINE, HOLD, SERVE, CONNECT, HELP };
	static const struct option options[] = {
		{ "family", 1, 0, FAMILY }, { "address", 1, 0, ADDRESS }, { "port", 1, 0, PORT },
		{ "source", 1, 0, SOURCE }, { "source-ports", 1, 0, SOURCE_PORTS },
		{ "count", 1, 0, COUNT }, { "seconds", 1, 0, SECONDS },
		{ "rate", 1, 0, RATE }, { "close", 1, 0, CLOSE }, { "bytes", 1, 0, BYTES },
		{ "threads", 1, 0, THREADS }, { "server-threads", 1, 0, SERVER_THREADS }, { "cpus", 1, 0, CPUS },
		{ "inline", 0, 0, INLINE }, { "hold", 1, 0, HOLD }, { "serve", 0, 0, SERVE }, { "connect", 0, 0, CONNECT },
		{ "help", 0, 0, HELP }, { 0 },
	};
	char *address = NULL, *source = NULL;
	int last_source_port = 0;
	const char *family = "ipv4";
	int first = 20000, last = 0, c, way;

	while ((c = getopt_long(argc, argv, "", options, NULL)) != -1) {
		switch (c) {
		case FAMILY: family = optarg; break;
		case ADDRESS: address = optarg; break;
		case PORT: sscanf(optarg, "%d-%d", &first, &last); break;
		case SOURCE: source = optarg; break;
		case SOURCE_PORTS: sscanf(optarg, "%d-%d", &opt.first_source_port, &last_source_port); break;
		case COUNT: opt.count = strtoull(optarg, NULL, 10); break;
		case SECONDS: opt.seconds = atof(optarg); break;
		case RATE: opt.rate = atof(optarg); break;
		case BYTES: opt.bytes = strtoul(optarg, NULL, 10); break;
		case THREADS: opt.n_clients = atoi(optarg); break;
		case SERVER_THREADS: opt.n_server_threads = atoi(optarg); break;
		case CPUS: parse_cpus(optarg); break;
		case HOLD: opt.hold = strtoull(optarg, NULL, 10); break;
		case INLINE: opt.inline_ends = true; break;
		case SERVE: opt.serve = true; break;
		case CONNECT: opt.connect = true; break;
		case CLOSE:
			for (way = 0; way < 5 && strcmp(optarg, close_names[way]); way++)
				;
			if (way == 5)
				usage("--close is client, server, client-shutdown, server-shutdown or reset");
			opt.way = (enum close_way)way;
			break;
		case HELP: fputs(help, stdout); exit(0);
		default: fputs(help, stderr); exit(2);
		}
	}
	char loopback[] = "127.0.0.1", loopback6[] = "::1"; /* strtok() leaves a list of one as it is */
	if (!address)
		address = strcmp(family, "ipv6") ? loopback : loopback6;
	if (last < first)
		last = first;
	opt.n_ports = last - first + 1;
	opt.n_servers = parse_list(address, family, first, last, opt.servers);
	if (opt.first_source_port && last_source_port >= opt.first_source_port) {
		opt.n_source_ports = last_source_port - opt.first_source_port + 1;
		if (!source)
			source = strcmp(family, "ipv6") ? loopback : loopback6;
	}
	if (source)
		opt.n_sources = parse_list(source, family, 0, 0, opt.sources);
	if (!opt.serve && !opt.count && opt.seconds <= 0)
		usage("say --count or --seconds");
	if (opt.seconds > MAX_SECONDS)
		usage("--seconds is too long");
	if (opt.bytes > MAX_BYTES)
		usage("--bytes is too large");
	if (opt.n_clients < 1 || opt.n_clients > MAX_THREADS || opt.n_server_threads < 1 ||
	    opt.n_server_threads > MAX_THREADS)
		usage("--threads is out of range");
	if (opt.serve + opt.connect + opt.inline_ends > 1)
		usage("--serve, --connect and --inline exclude each other");
	if (opt.serve)
		opt.n_clients = 0;
	if (opt.connect || opt.inline_ends)
		opt.n_server_threads = 0;
}

/* ---- the run ---- */

static void on_signal(int number)
{
	(void)number;
	atomic_store(&stopping, true);
}

static uint64_t sum_made(struct worker *all, int n)
{
	uint64_t made = 0;

	for (int i = 0; i < n; i++)
		made += atomic_load_explicit(&all[i].made, memory_order_relaxed);
	return made;
}

static uint64_t sum_closed(struct worker *all, int n)
{
	uint64_t closed = 0;

	for (int i = 0; i < n; i++)
		closed += atomic_load_explicit(&all[i].closed, memory_order_relaxed);
	return closed;
}

static uint64_t series[MAX_SECONDS];
static int n_series;
static atomic_ulong end_of_run; /* when the last connection was made and closed by its client: the time the rate is taken over */

/* One tick a second while the run lasts: the series. Ends the run when its time is up. */
static void *clock_thread(void *arg)
{
	struct worker *all = opt.serve ? servers : clients;
	int n = opt.serve ? opt.n_server_threads : opt.n_clients;
	uint64_t before = 0, end = started + (uint64_t)(opt.seconds * 1e9);

	(void)arg;
	for (uint64_t due = started + 1000000000u; n_series < MAX_SECONDS; due += 1000000000u) {
		uint64_t until = opt.seconds > 0 && end < due ? end : due;
		struct timespec t = { (time_t)(until / 1000000000u), (long)(until % 1000000000u) };
		clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, NULL);
		if (atomic_load(&stopping) || atomic_load(&end_of_run))
			return NULL;
		if (until == due) {
			uint64_t made = sum_made(all, n);
			series[n_series++] = made - before;
			if (opt.seconds > 0)
				fprintf(stderr, "%d s: %lu connections\n", n_series, (unsigned long)(made - before));
			before = made;
		}
		if (opt.seconds > 0 && until >= end) {
			atomic_store(&stopping, true);
			return NULL;
		}
	}
	return NULL;
}

static void start(struct worker *all, int n, void *(*run)(void *), int offset)
{
	for (int i = 0; i < n; i++) {
		all[i].index = i;
		all[i].cpu = opt.n_cpus ? opt.cpus[(i + offset) % opt.n_cpus] : -1;
		if (run == server_thread)
			listen_epoll(&all[i]);
		else if (opt.inline_ends)
			listen_inline(&all[i]);
	}
	started = now_ns();
	for (int i = 0; i < n; i++)
		if (pthread_create(&all[i].thread, NULL, run, &all[i]))
			die("pthread_create");
}

static void wait_for_servers(void)
{
	/* the last sessions are closed by the servers some moments after the clients are done; 2 s is for a loaded
	 * machine, and only a connection that was lost altogether takes them */
	for (int i = 0; i < 2000 && sum_closed(servers, opt.n_server_threads) < sum_made(clients, opt.n_clients); i++)
		usleep(1000);
}

/* --serve was told to end: what the clients have already made is still served, at most 2 s. */
static void drain(void)
{
	uint64_t before = 0;

	for (int i = 0, quiet = 0; i < 400 && quiet < 10; i++) {
		uint64_t made = sum_made(servers, opt.n_server_threads);
		bool idle = made == before && made <= sum_closed(servers, opt.n_server_threads) + opt.hold;
		quiet = idle ? quiet + 1 : 0;
		before = made;
		usleep(5000);
	}
}

static void report(void)
{
	static uint64_t latency[BUCKETS], failed[MAX_ERRNO];
	struct worker *all = opt.serve ? servers : clients;
	int n = opt.serve ? opt.n_server_threads : opt.n_clients;
	uint64_t made = sum_made(all, n), failures = 0, taken = 0;
	uint64_t closed = sum_closed(opt.n_server_threads ? servers : clients,
				     opt.n_server_threads ? opt.n_server_threads : opt.n_clients);
	double seconds = (double)(end_of_run - started) / 1e9, waited = 0;
	const char *comma = "";

	for (int i = 0; i < opt.n_clients; i++)
		waited += clients[i].waited;
	for (int half = 0; half < 2; half++) {
		struct worker *w = half ? servers : clients;
		for (int i = 0; i < (half ? opt.n_server_threads : opt.n_clients); i++) {
			taken += w[i].taken;
			for (int b = 0; b < BUCKETS; b++)
				latency[b] += w[i].latency[b];
			for (int e = 0; e < MAX_ERRNO; e++) {
				failed[e] += w[i].failed[e];
				failures += w[i].failed[e];
			}
		}
	}
	printf("{\"made\": %lu, \"closed\": %lu, \"taken\": %lu, \"failed\": %lu, \"errors\": {", (unsigned long)made,
	       (unsigned long)closed, (unsigned long)taken, (unsigned long)failures);
	for (int e = 0; e < MAX_ERRNO; e++) {
		const char *name = strerrorname_np(e);
		if (failed[e]) {
			printf("%s\"%s\": %lu", comma, name ? name : "unknown", (unsigned long)failed[e]);
			comma = ", ";
		}
	}
	printf("}, \"close\": \"%s\", \"waited\": %.3f, \"seconds\": %.3f, \"per_second\": %.0f, \"series\": [", close_names[opt.way],
	       waited, seconds, seconds > 0 ? (double)made / seconds : 0);
	for (int i = 0; i < n_series; i++)
		printf("%s%lu", i ? ", " : "", (unsigned long)series[i]);
	printf("], \"connect_us\": {\"p50\": %.1f, \"p99\": %.1f, \"p999\": %.1f}, \"histogram\": [",
	       percentile_us(latency, 0.5), percentile_us(latency, 0.99), percentile_us(latency, 0.999));
	comma = "";
	for (int b = 0; b < BUCKETS; b++) {
		if (latency[b]) {
			printf("%s[%.1f, %lu]", comma, (double)bucket_ns(b) / 1000.0, (unsigned long)latency[b]);
			comma = ", ";
		}
	}
	puts("]}");
}

int main(int argc, char **argv)
{
	struct rlimit files = { 1 << 20, 1 << 20 };
	pthread_t ticker;

	parse(argc, argv);
	if (setrlimit(RLIMIT_NOFILE, &files)) {
		/* not root: what we have must do */
		getrlimit(RLIMIT_NOFILE, &files);
		files.rlim_cur = files.rlim_max;
		setrlimit(RLIMIT_NOFILE, &files);
	}
	signal(SIGTERM, on_signal);
	signal(SIGINT, on_signal);
	start(servers, opt.n_server_threads, server_thread, 0);
	if (opt.serve) {
		prctl(PR_SET_PDEATHSIG, SIGTERM); /* a test that dies leaves no server behind */
		puts("ready");
		fflush(stdout);
	}
	start(clients, opt.n_clients, client_thread, opt.n_server_threads);
	pthread_create(&ticker, NULL, clock_thread, NULL);
	for (int i = 0; i < opt.n_clients; i++)
		pthread_join(clients[i].thread, NULL);
	while (opt.serve && !atomic_load(&stopping) &&
	       !(opt.count && sum_closed(servers, opt.n_server_threads) >= opt.count))
		usleep(1000);
	end_of_run = now_ns();
	if (opt.n_server_threads && !opt.serve)
		wait_for_servers();
	if (opt.serve)
		drain();
	atomic_store(&stopping, true);
	atomic_store(&servers_stop, true);
	for (int i = 0; i < opt.n_server_threads; i++)
		pthread_join(servers[i].thread, NULL);
	report();
	return 0;
}

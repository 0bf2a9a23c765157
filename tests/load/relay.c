/*
 * relay: carry packets between two tun devices, lose some and hold others back, so that they come out of order.
 *
 *   relay FD FD LOST HELD SEED     LOST and HELD: of 100,000 packets
 *
 * What is held back goes on after 1 to 4 ms, behind what came meanwhile. No RST is lost, and the same is counted once, so
 * that their number can be compared with what they did. Ends on SIGTERM; its one line of output is a JSON object with the numbers of both
 * directions: from the first device, from the second.
 */
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <time.h>
#include <unistd.h>

enum { MTU = 2048, ROOM = 4096, LAST = 64, RST = 0x04, TCP = 6 };

struct held {
	uint64_t due;
	ssize_t size;
	int to;
	unsigned char packet[MTU];
};

static struct held waiting[ROOM];
static int n_waiting;
static volatile sig_atomic_t stopping;
static uint64_t state;

static void on_signal(int number)
{
	(void)number;
	stopping = 1;
}

static uint32_t below(uint32_t limit) /* xorshift64* */
{
	state ^= state >> 12;
	state ^= state << 25;
	state ^= state >> 27;
	return (uint32_t)((state * 0x2545f4914f6cdd1dull) >> 33) % limit;
}

static uint64_t now_us(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000 + (uint64_t)t.tv_nsec / 1000;
}

static int is_reset(const unsigned char *packet, ssize_t size)
{
	ssize_t header = packet[0] >> 4 == 4 ? (packet[0] & 15) * 4 : 40;
	int protocol = packet[0] >> 4 == 4 ? packet[9] : packet[6];

	return protocol == TCP && size >= header + 20 && packet[header + 13] & RST;
}

/* Whether a RST is none of the last once more: what comes twice is answered twice, and ends a connection once. */
static int is_fresh(const unsigned char *packet, int end)
{
	static uint64_t last[2][LAST];
	static int next[2];
	uint64_t which; /* ports and SEQ */

	memcpy(&which, packet + (packet[0] >> 4 == 4 ? (packet[0] & 15) * 4 : 40), sizeof(which));
	for (int i = 0; i < LAST; i++)
		if (last[end][i] == which)
			return 0;
	last[end][next[end]++ % LAST] = which;
	return 1;
}

static void pass(int fd, const unsigned char *packet, ssize_t size, uint64_t *refused)
{
	if (write(fd, packet, (size_t)size) != size)
		++*refused;
}

int main(int argc, char **argv)
{
	static const char *const names[] = { "packets", "lost", "held", "resets", "refused" };
	uint64_t counts[5][2] = { { 0 } };
	struct pollfd ends[2];
	uint32_t lost, held;

	if (argc != 6)
		return 2;
	for (int i = 0; i < 2; i++)
		ends[i] = (struct pollfd){ .fd = atoi(argv[1 + i]), .events = POLLIN };
	lost = (uint32_t)atoi(argv[3]);
	held = (uint32_t)atoi(argv[4]);
	state = strtoull(argv[5], NULL, 10) * 2 + 1;
	signal(SIGTERM, on_signal);
	prctl(PR_SET_PDEATHSIG, SIGTERM); /* a test that dies leaves no relay behind */
	while (!stopping) {
		uint64_t now;

		poll(ends, 2, n_waiting ? 1 : 100);
		now = now_us();
		for (int i = 0; i < n_waiting;) {
			if (waiting[i].due > now) {
				i++;
				continue;
			}
			pass(ends[waiting[i].to].fd, waiting[i].packet, waiting[i].size, &counts[4][1 - waiting[i].to]);
			memcpy(&waiting[i], &waiting[--n_waiting], sizeof(waiting[i]));
		}
		for (int i = 0; i < 2; i++) {
			unsigned char packet[MTU];
			ssize_t size;

			for (int n = 0; n < 64 && (size = read(ends[i].fd, packet, sizeof(packet))) > 0; n++) {
				uint32_t chance = below(100000);
				int reset = is_reset(packet, size);

				counts[0][i]++;
				counts[3][i] += (uint64_t)(reset && is_fresh(packet, i));
				if (chance < lost && !reset) {
					counts[1][i]++;
				} else if (chance < lost + held && n_waiting < ROOM) {
					struct held *one = &waiting[n_waiting++];

					counts[2][i]++;
					one->due = now + 1000 + below(3000);
					one->size = size;
					one->to = 1 - i;
					memcpy(one->packet, packet, (size_t)size);
				} else {
					pass(ends[1 - i].fd, packet, size, &counts[4][i]);
				}
			}
		}
	}
	for (int i = 0; i < 5; i++)
		printf("%s\"%s\": [%lu, %lu]", i ? ", " : "{", names[i], (unsigned long)counts[i][0], (unsigned long)counts[i][1]);
	puts("}");
	return 0;
}

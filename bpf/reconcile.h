/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Table against kernel: programs that the daemon runs itself (BPF_PROG_TEST_RUN), so that every change of the table is
 * made by the same compare-and-swaps as the probes'.
 *
 *   look    reads the kernel's own list of TIME_WAIT sockets (sock_diag messages, received straight into the inbox) and
 *           marks each vestige as seen; stops after eight, or at one that the table does not agree with.
 *   take    deals with one message: adopts a session the table does not have, restarts one whose timer was.
 *   sweep   walks lines: zeroes expired words, and puts into the outbox the live words whose vestige was there before
 *           the list was asked for and was not seen in it.
 *   finish  ends one such vestige, after the daemon has asked the kernel for exactly this tuple.
 *
 * One round at a time: the daemon's thread is the only one that runs them.
 */
#ifndef TWCTL_RECONCILE_H
#define TWCTL_RECONCILE_H

#define INBOX_BYTES 65536
#define LOOK_MESSAGES 8
#define SWEEP_LINES 16

/* struct nlmsghdr and struct inet_diag_msg (linux/inet_diag.h): of each message the first 88 bytes. */
struct diag_message {
	u32 length;
	u16 type, netlink_flags;
	u32 sequence, port_id;
	u8 family, state, timer, retransmits;
	u16 local_port, remote_port;
	u32 local[4], remote[4];
	u32 interface;
	u32 cookie[2];
	u32 expires; /* ms */
	u32 queues[2], uid, inode;
};
#define DIAG_BY_FAMILY 20  /* SOCK_DIAG_BY_FAMILY */
#define DIAG_TIMER_TIME_WAIT 3 /* idiag_timer of a mini-socket */

struct inbox {
	u8 bytes[INBOX_BYTES + sizeof(struct diag_message)];
};

struct unseen {
	u64 word;
	u32 line, index;
	struct tuple tuple;
};

struct outbox {
	u64 adopted, restarted; /* sums since the daemon zeroed them */
	u64 unseen_count;
	struct unseen unseen[SWEEP_LINES * LINE_WORDS];
};

BPF_F_TABLE("array", u32, struct inbox, inbox, 1, BPF_F_MMAPABLE);
BPF_F_TABLE("array", u32, struct outbox, outbox, 1, BPF_F_MMAPABLE);
/* One bit for each slot, zeroed by the daemon before a round. */
BPF_F_TABLE("array", u32, u64, seen_ipv4, SLOTS_IPV4 / 64 + 1, BPF_F_MMAPABLE);
BPF_F_TABLE("array", u32, u64, seen_ipv6, SLOTS_IPV6 / 64 + 1, BPF_F_MMAPABLE);
/* Each ring's head when the round began. */
BPF_F_TABLE("array", u32, u64, marks, CLASSES *FAMILIES, BPF_F_MMAPABLE);

ALWAYS_INLINE struct outbox *the_outbox(void)
{
	u32 zero = 0;

	return outbox.lookup(&zero);
}

ALWAYS_INLINE u64 *seen_at(int family, u32 slot)
{
	u32 i = slot / 64;

	return family == FAMILY_IPV4 ? seen_ipv4.lookup(&i) : seen_ipv6.lookup(&i);
}

ALWAYS_INLINE void see(int family, u32 slot)
{
	u64 *bits = seen_at(family, slot);

	if (bits)
		*bits |= 1ULL << slot % 64;
}

/* Whether a slot was written since the round began: those are not in the kernel's list, and need not be. */
ALWAYS_INLINE bool newer_than_round(int family, u32 slot)
{
	u32 i = class_of(family, slot) * FAMILIES + family;
	struct ring *ring = rings.lookup(&i);
	u64 *mark = marks.lookup(&i);
	u64 next, births_ago;

	if (!ring || !mark)
		return true;
	next = ring->head % ring->capacity;
	births_ago = (next + 2 * ring->capacity - 1 - (slot - ring->base)) % ring->capacity;
	return births_ago < ring->head - *mark;
}

ALWAYS_INLINE void read_session4(u32 slot, struct session *s)
{
	struct vestige4 *v = records_ipv4.lookup(&slot);

	if (!v)
		return;
	s->snd_nxt = v->snd_nxt;
	s->rcv_nxt = v->rcv_nxt;
	s->ts_recent = v->ts_recent;
	s->ts_offset = v->ts_offset;
	s->window = v->window;
	s->bits = v->bits;
}

ALWAYS_INLINE void read_session6(u32 slot, struct session *s)
{
	struct vestige6 *v = records_ipv6.lookup(&slot);

	if (!v)
		return;
	s->snd_nxt = v->snd_nxt;
	s->rcv_nxt = v->rcv_nxt;
	s->ts_recent = v->ts_recent;
	s->ts_offset = v->ts_offset;
	s->window = v->window;
	s->bits = v->bits;
}

ALWAYS_INLINE void read_session(int family, u32 slot, struct session *s)
{
	if (family == FAMILY_IPV4)
		read_session4(slot, s);
	else
		read_session6(slot, s);
}

/* The kernel's timer differs from the table's by more than rounding (4 ticks, 268 ms): it was restarted meanwhile, or the
 * FIN has come and FIN_WAIT2 is TIME_WAIT now. */
ALWAYS_INLINE bool moved_on(u64 left, u64 nanoseconds, u8 flags, u8 known)
{
	s64 difference = (s64)(nanoseconds >> TICK_SHIFT) - (s64)left;

	return difference > 4 || (flags ^ known) & VESTIGE_FIN_WAIT2;
}

ALWAYS_INLINE void adopt(int family, struct session *s, struct outbox *out, u64 nanoseconds)
{
	u32 class = classify(family, &s->tuple);

	s->bits |= VESTIGE_SILENT;
	if (!vestige_insert(family, class, s, nanoseconds))
		return;
	if (class < CLASSES)
		COUNT(adopted[class][family]);
	out->adopted++;
}

/* True if the table agrees with the kernel about this session. */
ALWAYS_INLINE bool agrees(int family, const struct match *match, const struct place *place, const struct session *s,
			  struct session *known, u64 nanoseconds)
{
	if (!match->at)
		return false;
	read_session(family, slot_of(match->word), known);
	if (moved_on(remaining(match->word, place->now), nanoseconds, s->bits, known->bits))
		return false;
	see(family, slot_of(match->word));
	return true;
}

ALWAYS_INLINE bool look_socket(int family, const struct session *s, u64 nanoseconds)
{
	struct place place = { .now = tick_now() };
	struct match match = vestige_find(family, &s->tuple, &place);
	struct session known = {};

	return agrees(family, &match, &place, s, &known, nanoseconds);
}

ALWAYS_INLINE void take_socket(int family, struct session *s, struct outbox *out, u64 nanoseconds)
{
	struct place place = { .now = tick_now() };
	struct match match = vestige_find(family, &s->tuple, &place);
	struct session known = {};

	if (agrees(family, &match, &place, s, &known, nanoseconds))
		return;
	if (!match.at) {
		adopt(family, s, out, nanoseconds);
		return;
	}
	known.bits = (known.bits & ~VESTIGE_FIN_WAIT2) | s->bits;
	known.tuple = s->tuple;
	vestige_restart(family, &match, &known, &place, nanoseconds);
	out->restarted++;
}

/* Fills in what the kernel's list tells of a session; returns how long its timer will still run. */
ALWAYS_INLINE u64 read_message(int family, struct session *s, const struct diag_message *m, u32 netns)
{
	u64 left = ((u64)m->expires * 1000000 + JIFFY_NANOSECONDS - 1) / JIFFY_NANOSECONDS;
	bool time_wait = m->state == TCP_TIME_WAIT;

	s->bits = time_wait ? 0 : VESTIGE_FIN_WAIT2;
	s->tuple.local_port = m->local_port;
	s->tuple.remote_port = m->remote_port;
	s->tuple.netns = netns;
	if (family == FAMILY_IPV6) {
		__builtin_memcpy(s->tuple.local, m->local, sizeof(s->tuple.local));
		__builtin_memcpy(s->tuple.remote, m->remote, sizeof(s->tuple.remote));
		s->tuple.scope = is_link_local(m->remote) ? m->interface : 0;
	} else {
		u32 word = m->family == AF_INET6 ? 3 : 0;

		s->tuple.local[0] = m->local[word];
		s->tuple.remote[0] = m->remote[word];
	}
	return timer_nanoseconds(left, time_wait ? TIME_WAIT_JIFFIES : left);
}

ALWAYS_INLINE bool concerns(int family, const struct diag_message *m)
{
	bool ipv6 = m->family == AF_INET6 && !is_mapped(m->remote);

	return m->type == DIAG_BY_FAMILY && m->timer == DIAG_TIMER_TIME_WAIT && ipv6 == (family == FAMILY_IPV6);
}

ALWAYS_INLINE struct diag_message *message_at(u64 offset)
{
	u32 zero = 0;
	struct inbox *in = inbox.lookup(&zero);

	return in ? (void *)&in->bytes[offset % INBOX_BYTES] : NULL;
}

ALWAYS_INLINE int look(int family, u64 offset, u64 end, u32 netns)
{
#pragma clang loop unroll(disable)
	for (int i = 0; i < LOOK_MESSAGES; i++) {
		struct diag_message *m = message_at(offset);
		struct session s = {};

		if (!m || offset + sizeof(*m) > end || m->length < 16)
			return INBOX_BYTES;
		if (concerns(family, m) && !look_socket(family, &s, read_message(family, &s, m, netns)))
			return offset;
		offset += (m->length + 3) & 0xfffc;
	}
	return offset;
}

ALWAYS_INLINE int take(int family, u64 offset, u32 netns)
{
	struct diag_message *m = message_at(offset);
	struct outbox *out = the_outbox();
	struct session s = {};

	if (m && out && concerns(family, m))
		take_socket(family, &s, out, read_message(family, &s, m, netns));
	return 0;
}

/* args: offset into the inbox, end of what was received, namespace index. Returns the offset to go on at, which may be
 * that of a message for take; INBOX_BYTES when all were looked at. Mapped addresses come among the IPv6 messages, so
 * both families' programs see those. */
int look_ipv4(struct bpf_raw_tracepoint_args *ctx)
{
	return look(FAMILY_IPV4, ctx->args[0], ctx->args[1], ctx->args[2]);
}

int look_ipv6(struct bpf_raw_tracepoint_args *ctx)
{
	return look(FAMILY_IPV6, ctx->args[0], ctx->args[1], ctx->args[2]);
}

/* args: offset into the inbox, namespace index. */
int take_ipv4(struct bpf_raw_tracepoint_args *ctx)
{
	return take(FAMILY_IPV4, ctx->args[0], ctx->args[1]);
}

int take_ipv6(struct bpf_raw_tracepoint_args *ctx)
{
	return take(FAMILY_IPV6, ctx->args[0], ctx->args[1]);
}

ALWAYS_INLINE void sweep_word(int family, struct outbox *out, struct line *line, u32 number, u32 i, u64 now)
{
	u64 word = line->word[i], *bits;
	u64 n = *(volatile u64 *)&out->unseen_count;
	u32 slot = slot_of(word);

	if (!word)
		return;
	if (!remaining(word, now)) {
		__sync_val_compare_and_swap(&line->word[i], word, 0);
		return;
	}
	bits = seen_at(family, slot);
	if (!bits || (*bits >> slot % 64 & 1) || newer_than_round(family, slot) || n >= SWEEP_LINES * LINE_WORDS)
		return;
	out->unseen[n].word = word;
	out->unseen[n].line = number;
	out->unseen[n].index = i;
	read_tuple(family, slot, &out->unseen[n].tuple);
	out->unseen_count = n + 1;
}

ALWAYS_INLINE int sweep(int family, u32 first)
{
	struct outbox *out = the_outbox();
	u64 now = tick_now();

	if (!out)
		return -1;
	out->unseen_count = 0;
#pragma clang loop unroll(disable)
	for (u32 n = 0; n < SWEEP_LINES; n++) {
		struct line *line = line_at(family, first + n);

		if (!line)
			return 0;
#pragma clang loop unroll(disable)
		for (u32 i = 0; i < LINE_WORDS; i++)
			sweep_word(family, out, line, first + n, i, now);
	}
	return first + SWEEP_LINES;
}

/* args: first line. Returns the next line to sweep, 0 after the last. */
int sweep_ipv4(struct bpf_raw_tracepoint_args *ctx)
{
	return sweep(FAMILY_IPV4, ctx->args[0]);
}

int sweep_ipv6(struct bpf_raw_tracepoint_args *ctx)
{
	return sweep(FAMILY_IPV6, ctx->args[0]);
}

ALWAYS_INLINE int finish(int family, u32 number, u32 i, u64 word, u32 reason)
{
	struct line *line = line_at(family, number);
	u64 now = tick_now();

	return line && remaining(word, now) &&
	       vestige_end(family, &line->word[i % LINE_WORDS], word, now, reason);
}

/* args: line, index in it, word, reason. Returns 1 if this ended the vestige. */
int finish_ipv4(struct bpf_raw_tracepoint_args *ctx)
{
	return finish(FAMILY_IPV4, ctx->args[0], ctx->args[1], ctx->args[2], ctx->args[3]);
}

int finish_ipv6(struct bpf_raw_tracepoint_args *ctx)
{
	return finish(FAMILY_IPV6, ctx->args[0], ctx->args[1], ctx->args[2], ctx->args[3]);
}

#endif

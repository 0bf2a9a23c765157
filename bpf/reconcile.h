/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Table against kernel: programs that the daemon runs itself (BPF_PROG_TEST_RUN), so that every change of the table is
 * made by the same compare-and-swaps as the probes'.
 *
 *   take    reads one entry of the kernel's own list of TIME_WAIT sockets (sock_diag messages, received straight into the
 *           inbox): marks the session's vestige as seen, restarts it if the timer was, or says that there is none.
 *   adopt   inserts a session that the table does not have.
 *   sweep   walks lines: zeroes expired words, and puts into the outbox the live words whose vestige was there before
 *           the list was asked for and was not seen in it.
 *   epoch   finds out when jiffies were 0.
 *   finish  ends one such vestige, after the daemon has asked the kernel for exactly this tuple.
 *
 * One round at a time: the daemon's thread is the only one that runs them.
 */
#ifndef TWCTL_RECONCILE_H
#define TWCTL_RECONCILE_H

#define INBOX_BYTES 65536
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

ALWAYS_INLINE u64 *seen_at(const struct work *w, u32 slot)
{
	u32 i = slot / 64;

	return is_ipv4(w) ? seen_ipv4.lookup(&i) : seen_ipv6.lookup(&i);
}

ALWAYS_INLINE void see(const struct work *w, u32 slot)
{
	u64 *bits = seen_at(w, slot);

	if (bits)
		*bits |= 1ULL << slot % 64;
}

/* Whether a slot was written since the round began: those are not in the kernel's list, and need not be. */
ALWAYS_INLINE bool newer_than_round(const struct work *w, u32 slot)
{
	u32 i = class_of(w, slot) * FAMILIES + w->family;
	struct ring *ring = rings.lookup(&i);
	u64 *mark = marks.lookup(&i);
	u64 next, births_ago;

	if (!ring || !mark)
		return true;
	next = ring->head % ring->capacity;
	births_ago = (next + 2 * ring->capacity - 1 - (slot - ring->base)) % ring->capacity;
	return births_ago < ring->head - *mark;
}

/* The kernel's timer differs from the table's by more than rounding (4 ticks, 268 ms): it was restarted meanwhile, or the
 * FIN has come and FIN_WAIT2 is TIME_WAIT now. */
ALWAYS_INLINE bool moved_on(u64 left, u64 nanoseconds, u8 flags, u8 known)
{
	return less(left + 4, nanoseconds >> TICK_SHIFT) | ((flags ^ known) & VESTIGE_FIN_WAIT2);
}

/* What the kernel's list tells of a session goes into w->session; returns how long its timer will still run. */
ALWAYS_INLINE u64 read_message(struct work *w, const struct diag_message *m, u32 netns)
{
	u64 left = ((u64)m->expires * 1000000 + JIFFY_NANOSECONDS - 1) / JIFFY_NANOSECONDS;
	struct tuple *t = &w->session.tuple;

	t->local_port = m->local_port;
	t->remote_port = m->remote_port;
	t->netns = netns;
	if (!is_ipv4(w)) {
		__builtin_memcpy(t->local, m->local, sizeof(t->local));
		__builtin_memcpy(t->remote, m->remote, sizeof(t->remote));
		t->scope = is_link_local(m->remote) ? m->interface : 0;
	} else if (m->family == AF_INET6) {
		t->local[0] = m->local[3];
		t->remote[0] = m->remote[3];
	} else {
		t->local[0] = m->local[0];
		t->remote[0] = m->remote[0];
	}
	return timer_nanoseconds(left, m->state == TCP_TIME_WAIT ? TIME_WAIT_JIFFIES : left);
}

/* A mini-socket of the family that is asked about. */
ALWAYS_INLINE bool concerns(const struct work *w, const struct diag_message *m)
{
	bool ipv6 = m->family == AF_INET6 && !is_mapped(m->remote);

	return m->type == DIAG_BY_FAMILY && m->timer == DIAG_TIMER_TIME_WAIT && ipv6 == !is_ipv4(w);
}

/* Nobody saw its sequence state. */
ALWAYS_INLINE void adopted_session(struct session *s, u8 substate)
{
	s->snd_nxt = s->rcv_nxt = s->ts_recent = s->ts_offset = 0;
	s->window = 0;
	s->bits = VESTIGE_SILENT | substate;
}

ALWAYS_INLINE u8 substate_of(const struct diag_message *m)
{
	return m->state == TCP_TIME_WAIT ? 0 : VESTIGE_FIN_WAIT2;
}

ALWAYS_INLINE struct diag_message *message_at(u64 offset)
{
	u32 zero = 0;
	struct inbox *in = inbox.lookup(&zero);

	return in ? (void *)&in->bytes[offset % INBOX_BYTES] : NULL;
}

/* args: family, offset into the inbox, namespace index. Returns 1 if the table has no vestige of this session. Mapped
 * addresses come among the IPv6 messages, so those are taken for both families. */
int take(struct bpf_raw_tracepoint_args *ctx)
{
	struct diag_message *m = message_at(ctx->args[1]);
	struct work *w = work_of(WORKER_RECONCILE);
	struct outbox *out = the_outbox();
	u64 nanoseconds;

	if (!m || !w || !out)
		return 0;
	w->family = ctx->args[0];
	if (!concerns(w, m))
		return 0;
	nanoseconds = read_message(w, m, ctx->args[2]);
	if (!vestige_find(w))
		return 1;
	read_record(w, slot_of(w->word));
	if (!moved_on(remaining(w->word, w->now), nanoseconds, substate_of(m), w->session.bits)) {
		see(w, slot_of(w->word));
		return 0;
	}
	w->session.bits = (w->session.bits & ~VESTIGE_FIN_WAIT2) | substate_of(m);
	vestige_restart(w, nanoseconds);
	out->restarted++;
	return 0;
}

/* args: family, offset into the inbox, namespace index. */
int adopt(struct bpf_raw_tracepoint_args *ctx)
{
	struct diag_message *m = message_at(ctx->args[1]);
	struct work *w = work_of(WORKER_RECONCILE);
	struct outbox *out = the_outbox();
	u64 nanoseconds;
	u32 class;

	if (!m || !w || !out)
		return 0;
	w->family = ctx->args[0];
	nanoseconds = read_message(w, m, ctx->args[2]);
	adopted_session(&w->session, substate_of(m));
	w->owner = OWNER_UNKNOWN;
	class = classify(w);
	if (vestige_insert(w, class, nanoseconds) && class < CLASSES) {
		COUNT(WORKER_RECONCILE, adopted[class][w->family % FAMILIES]);
		out->adopted++;
	}
	return 0;
}

ALWAYS_INLINE void sweep_word(struct work *w, struct outbox *out, struct line *line, u32 number, u32 i)
{
	u64 word = line->word[i], *bits, n = out->unseen_count;
	u32 slot = slot_of(word);

	if (!word)
		return;
	if (!remaining(word, w->now)) {
		__sync_val_compare_and_swap(&line->word[i], word, 0);
		return;
	}
	bits = seen_at(w, slot);
	if (!bits || (*bits >> slot % 64 & 1) || newer_than_round(w, slot))
		return;
	asm("" : "+r"(n)); /* clang knows that it is in bounds, the verifier has to see it */
	n %= SWEEP_LINES * LINE_WORDS;
	out->unseen[n].word = word;
	out->unseen[n].line = number;
	out->unseen[n].index = i;
	read_tuple(w, slot, &out->unseen[n].tuple);
	out->unseen_count = n + 1;
}

/* args: family, first line. Returns the next line to sweep, 0 after the last. */
int sweep(struct bpf_raw_tracepoint_args *ctx)
{
	struct work *w = work_of(WORKER_RECONCILE);
	struct outbox *out = the_outbox();
	u32 first = ctx->args[1];

	if (!out || !w)
		return 0;
	w->family = ctx->args[0];
	w->now = tick_now();
	out->unseen_count = 0;
#pragma clang loop unroll(disable)
	for (u32 n = 0; n < SWEEP_LINES; n++) {
		struct line *line = line_at(w, first + n);

		if (!line)
			return 0;
#pragma clang loop unroll(disable)
		for (u32 i = 0; i < LINE_WORDS; i++)
			sweep_word(w, out, line, first + n, i);
	}
	return first + SWEEP_LINES;
}

/* args: family, line, index in it, word, reason. Returns 1 if this ended the vestige. */
int finish(struct bpf_raw_tracepoint_args *ctx)
{
	struct work *w = work_of(WORKER_RECONCILE);
	u64 word = ctx->args[3];
	struct line *line;

	if (!w)
		return 0;
	w->family = ctx->args[0];
	w->now = tick_now();
	line = line_at(w, ctx->args[1]);
	return line && remaining(word, w->now) &&
	       vestige_end(w, &line->word[ctx->args[2] % LINE_WORDS], word, ctx->args[4]);
}

/* args: 1 to begin, 0 to go on. Between two jiffies the difference to the clock grows; its least is the epoch. */
int epoch(struct bpf_raw_tracepoint_args *ctx)
{
	u64 seen = bpf_ktime_get_ns() - bpf_jiffies64() * JIFFY_NANOSECONDS;
	u32 zero = 0;
	struct meta *m = meta.lookup(&zero);

	if (m && (ctx->args[0] || (s64)(seen - m->epoch) < 0))
		m->epoch = seen;
	return 0;
}

#endif

/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Table against kernel: what the daemon does with the kernel's own list of TIME_WAIT sockets, by the same compare-and-swaps
 * that the probes use. Entries of the list (sock_diag messages) are received straight into the inbox.
 *
 * One round at a time: the daemon's thread is the only one that runs these.
 */
#ifndef TWCTL_OBSERVE_COMPARE_H
#define TWCTL_OBSERVE_COMPARE_H

#include "insert.h"
#include "observe/messages.h"
#include "observe/socket.h"
#include "table.h"

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

	return !ring || !mark || (turn_of(ring, slot) - 1) * ring->capacity + (slot - ring->base) >= *mark;
}

#define TIME_WAIT_MILLISECONDS 60000

ALWAYS_INLINE bool in_fin_wait2(const struct diag_message *m)
{
	return m->state != TCP_TIME_WAIT;
}

/* The kernel's timer differs from the table's by more than rounding (4 ticks, 268 ms): it was restarted meanwhile, or the
 * FIN has come and FIN_WAIT2 is TIME_WAIT now. */
ALWAYS_INLINE bool moved_on(const struct work *w, const struct diag_message *m, u64 nanoseconds)
{
	return less(remaining(w->word, w->now) + 4, nanoseconds >> TICK_SHIFT) || w->session.fin_wait2 != in_fin_wait2(m);
}

/* Ticks since the kernel started the timer; 0 in FIN_WAIT2, where nothing tells how long it was to be. */
ALWAYS_INLINE u64 age_of_timer(const struct diag_message *m)
{
	return in_fin_wait2(m) || m->expires >= TIME_WAIT_MILLISECONDS ?
		       0 : (u64)(TIME_WAIT_MILLISECONDS - m->expires) * 1000000 >> TICK_SHIFT;
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
ALWAYS_INLINE void adopted_session(struct session *s, bool fin_wait2)
{
	s->snd_nxt = s->rcv_nxt = s->ts_recent = s->ts_offset = 0;
	s->window = 0;
	s->device = 0;
	s->bits = VESTIGE_UNKNOWN;
	s->fin_wait2 = fin_wait2;
}

ALWAYS_INLINE struct diag_message *message_at(u64 offset)
{
	u32 zero = 0;
	struct inbox *in = inbox.lookup(&zero);

	return in ? (void *)&in->bytes[offset % INBOX_BYTES] : NULL;
}

/* Returns 1 if the table has no vestige of this session. Mapped
 * addresses come among the IPv6 messages, so those are taken for both families. */
ALWAYS_INLINE int compare_message(u64 family, u64 offset, u64 netns)
{
	struct diag_message *m = message_at(offset);
	struct work *w = work_of(WORKER_RECONCILE);
	struct outbox *out = the_outbox();
	u64 nanoseconds;

	if (!m || !w || !out)
		return 0;
	w->family = family;
	if (!concerns(w, m))
		return 0;
	nanoseconds = read_message(w, m, netns);
	if (!vestige_find(w))
		return 1;
	see(w, slot_of(w->word));
	if (!vestige_read(w) || !moved_on(w, m, nanoseconds))
		return 0;
	set_substate(&w->session, in_fin_wait2(m));
	if (vestige_restart(w, age_of_timer(m), nanoseconds))
		out->restarted++;
	return 0;
}

/* args: family, offset into the inbox, namespace index. */
ALWAYS_INLINE int adopt_message(u64 family, u64 offset, u64 netns)
{
	struct diag_message *m = message_at(offset);
	struct work *w = work_of(WORKER_RECONCILE);
	struct outbox *out = the_outbox();
	u64 nanoseconds;
	u32 class;

	if (!m || !w || !out)
		return 0;
	w->family = family;
	nanoseconds = read_message(w, m, netns);
	adopted_session(&w->session, in_fin_wait2(m));
	w->owner = OWNER_UNKNOWN;
	w->flags = 0;
	class = classify(w);
	if (vestige_insert(w, class, age_of_timer(m), nanoseconds) && class < CLASSES) {
		COUNT(WORKER_RECONCILE, adopted[class][w->family % FAMILIES]);
		out->adopted++;
	}
	return 0;
}

ALWAYS_INLINE void sweep_word(struct work *w, struct outbox *out, struct line *line, u32 number, u32 i, bool believed)
{
	u64 word = line->word[i], *bits, n = out->unseen_count;
	u32 slot = slot_of(word);

	clear_word(w, &line->word[i], believed);
	if (!word || !believed || !remaining(word, w->now))
		return;
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

/* Returns the next line to sweep, 0 after the last. */
ALWAYS_INLINE int sweep_lines(u64 family, u64 first_line)
{
	struct work *w = work_of(WORKER_RECONCILE);
	struct outbox *out = the_outbox();
	struct meta *m = the_meta();
	u32 first = first_line;
	bool believed;

	if (!out || !w || !m)
		return 0;
	w->family = family;
	w->now = tick_now();
	believed = is_swept(w, m, BELIEVED_TICKS);
	out->unseen_count = 0;
#pragma clang loop unroll(disable)
	for (u32 n = 0; n < SWEEP_LINES; n++) {
		struct line *line = line_at(w, first + n);

		if (!line)
			return 0;
#pragma clang loop unroll(disable)
		for (u32 i = 0; i < LINE_WORDS; i++)
			sweep_word(w, out, line, first + n, i, believed);
	}
	return first + SWEEP_LINES;
}

/* Returns 1 if this ended the vestige. */
ALWAYS_INLINE int finish_vestige(u64 family, u64 number, u64 index, u64 word, u64 reason)
{
	struct work *w = work_of(WORKER_RECONCILE);
	struct line *line;

	if (!w)
		return 0;
	w->family = family;
	w->now = tick_now();
	line = line_at(w, number);
	return line && remaining(word, w->now) &&
	       vestige_end(w, &line->word[index % LINE_WORDS], word, reason);
}

/* Between two jiffies the difference to the clock grows; its least is the epoch. */
ALWAYS_INLINE int look_at_epoch(u64 begin)
{
	u64 seen = bpf_ktime_get_ns() - bpf_jiffies64() * JIFFY_NANOSECONDS;
	struct meta *m = the_meta();

	if (m && (begin || (s64)(seen - m->epoch) < 0))
		m->epoch = seen;
	return 0;
}

#endif

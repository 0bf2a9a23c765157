// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * The probes: what the kernel tells of a session's entry, restart and end, and of connections that ended otherwise. Then the
 * programs that the daemon runs itself (BPF_PROG_TEST_RUN).
 *
 * Two probes give one result. PROBE_FENTRY hooks the kernel's own functions and so sees every entry with its arguments and
 * every end with its reason. Without it the state event alone tells entries, and the daemon asks the kernel for the rest
 * (observe/compare.h).
 */
#include "vestige.h"
#include "table.h"
#include "kernel.h"
#include "observe/close.h"
#include "observe/compare.h"
#include "observe/due.h"
#ifdef PROBE_FENTRY
#include "observe/teardown.h"
#else
#include "observe/twice.h"
#endif

/* What the daemon tells the commands: for user space alone. */
BPF_F_TABLE("array", u32, struct settings, settings, 1, BPF_F_MMAPABLE);

/* A state event to SYN_SENT. A program that is attached twice begins the search twice, at nearly the same time. */
ALWAYS_INLINE void connects_now(u64 sk)
{
#ifdef MEASURE_SEARCH
	begin_search(sk);
#endif
}

#ifdef MEASURE_SEARCH
/* At times attached to the root cgroup, so to all sockets. */
int connect_goes_out(struct bpf_sock_ops *ops)
{
	if (ops->op == SOCK_OPS_CONNECT && ops->sk)
		found_port(ops, ops->sk);
	return 1;
}
#endif

#ifdef PROBE_FENTRY
RAW_TRACEPOINT_PROBE(inet_sock_set_state)
{
	if (ctx->args[2] == TCP_SYN_SENT)
		connects_now(ctx->args[0]);
	if (ctx->args[2] == TCP_CLOSE)
		ended(WORKER_AGAIN, (void *)ctx->args[0], ctx->args[1]); /* an entry may interrupt it */
	return 0;
}

KFUNC_PROBE(tcp_time_wait)
{
	enter_by_call((void *)ctx[0], ctx[1], ctx[2]);
	return 0;
}

KFUNC_PROBE(__inet_twsk_schedule)
{
	if ((u8)ctx[2])
		restart_mini((void *)ctx[0], (u32)ctx[1]);
	return 0;
}

KFUNC_PROBE(tw_timer_handler)
{
	note_cause(ctx[0] - OFFSET_inet_timewait_sock_tw_timer, REASON_EXPIRED);
	return 0;
}

KFUNC_PROBE(inet_twsk_kill)
{
	end_mini((void *)ctx[0], take_cause(ctx[0]));
	return 0;
}

KFUNC_PROBE(tcp_timewait_state_process)
{
	note_cause(ctx[0], REASON_RESET);
	return 0;
}

/* The result follows the arguments, and how many there are differs between kernels. */
KRETFUNC_PROBE(tcp_timewait_state_process)
{
	u32 status = ctx[ARGUMENTS_tcp_timewait_state_process];

	if (status == TCP_TW_SYN)
		note_cause(ctx[0], REASON_REUSED);
	else if (status != TCP_TW_RST)
		note_cause(0, 0);
	return 0;
}

KRETFUNC_PROBE(tcp_twsk_unique)
{
	if ((u32)ctx[ARGUMENTS_tcp_twsk_unique] == 1)
		note_cause(ctx[1], REASON_REUSED);
	return 0;
}
#else
RAW_TRACEPOINT_PROBE(inet_sock_set_state)
{
	const void *sk = (void *)ctx->args[0];
	u64 from = ctx->args[1];
	u32 worker;

	if (ctx->args[2] == TCP_SYN_SENT)
		connects_now((u64)sk);
	if (ctx->args[2] != TCP_CLOSE)
		return 0;
	worker = meet_event(sk, from);
	if (worker != WORKERS)
		ended(worker, sk, from);
	leave_event();
	return 0;
}
#endif

/* Arguments: family, offset of a message in the inbox, namespace index. 1: the table has no vestige of that session. */
int take(struct bpf_raw_tracepoint_args *ctx)
{
	return compare_message(ctx->args[0], ctx->args[1], ctx->args[2]);
}

/* Arguments: as take. Inserts a session that the table does not have. */
int adopt(struct bpf_raw_tracepoint_args *ctx)
{
	return adopt_message(ctx->args[0], ctx->args[1], ctx->args[2]);
}

/* Arguments: family, first line. Returns the next line to sweep, 0 after the last. */
int sweep(struct bpf_raw_tracepoint_args *ctx)
{
	return sweep_lines(ctx->args[0], ctx->args[1]);
}

/* Arguments: family, line, index in it, word, reason. 1: this ended the vestige. */
int finish(struct bpf_raw_tracepoint_args *ctx)
{
	return finish_vestige(ctx->args[0], ctx->args[1], ctx->args[2], ctx->args[3], ctx->args[4]);
}

/* Arguments: family, class, numbers of the entry to begin at and of that to end before, least age in ticks, 1: stop at the first
 * that is younger, where all behind it are. Returns how many entries it looked at. */
int collect(struct bpf_raw_tracepoint_args *ctx)
{
	return collect_due(ctx->args[0], ctx->args[1], ctx->args[2], ctx->args[3], ctx->args[4], ctx->args[5]);
}

/* Arguments: family, offset of a message in the inbox, namespace index, reason. 1: this ended the vestige. */
int dismiss(struct bpf_raw_tracepoint_args *ctx)
{
	return dismiss_message(ctx->args[0], ctx->args[1], ctx->args[2], ctx->args[3]);
}

/* Argument: 1 to begin, 0 to go on. */
int epoch(struct bpf_raw_tracepoint_args *ctx)
{
	return look_at_epoch(ctx->args[0]);
}

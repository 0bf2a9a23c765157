/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The kernel's own constants, and how a field of one of its structures is read.
 *
 * OFFSET_struct_field (bytes), BIT_struct_field and BITS_struct_field come from the running kernel's BTF. Of a field
 * that this kernel does not have no macro is defined.
 */
#ifndef TWCTL_KERNEL_H
#define TWCTL_KERNEL_H

#define ALWAYS_INLINE static inline __attribute__((always_inline))

#define AF_INET 2
#define AF_INET6 10
#define IPPROTO_TCP 6

enum { TCP_ESTABLISHED = 1, TCP_SYN_SENT = 2, TCP_FIN_WAIT1 = 4, TCP_FIN_WAIT2 = 5, TCP_TIME_WAIT = 6, TCP_CLOSE = 7,
       TCP_CLOSE_WAIT = 8, TCP_LAST_ACK = 9, TCP_LISTEN = 10, TCP_CLOSING = 11 };

/* bpf_probe_read_kernel(). By that name bcc would look for it in /proc/kallsyms, which shows addresses to CAP_SYSLOG alone, and
 * without an address take bpf_probe_read(), which a TC program may not call. */
static long (*read_kernel)(void *into, u32 size, const void *from) = (void *)BPF_FUNC_probe_read_kernel;

/* Reads `into` from a field of a kernel structure; not 0 if that memory cannot be read. */
#define READ(into, from, struct_field) read_kernel(&(into), sizeof(into), (u8 *)(from) + OFFSET_##struct_field)

ALWAYS_INLINE u8 bitfield(u8 byte, u32 bit, u32 bits)
{
	return byte >> bit & ((1 << bits) - 1);
}

ALWAYS_INLINE bool is_loopback4(u32 address)
{
	return (address & bpf_htonl(0xff000000)) == bpf_htonl(0x7f000000);
}

ALWAYS_INLINE bool is_same6(const u32 *a, const u32 *b)
{
	return !((a[0] ^ b[0]) | (a[1] ^ b[1]) | (a[2] ^ b[2]) | (a[3] ^ b[3]));
}

ALWAYS_INLINE bool is_loopback6(const u32 *address)
{
	return !(address[0] | address[1] | address[2] | (address[3] ^ bpf_htonl(1)));
}

ALWAYS_INLINE bool is_link_local(const u32 *address)
{
	return (address[0] & bpf_htonl(0xffc00000)) == bpf_htonl(0xfe800000);
}

#endif

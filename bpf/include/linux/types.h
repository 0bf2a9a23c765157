/* The fixed-width types that BPF programs and bcc's helpers use: all that is taken from the kernel's own header. */
#ifndef TWCTL_LINUX_TYPES_H
#define TWCTL_LINUX_TYPES_H

typedef signed char __s8, s8;
typedef unsigned char __u8, u8;
typedef signed short __s16, s16;
typedef unsigned short __u16, u16;
typedef signed int __s32, s32;
typedef unsigned int __u32, u32;
typedef signed long long __s64, s64;
typedef unsigned long long __u64, u64;

typedef __u16 __be16, __le16, __sum16;
typedef __u32 __be32, __le32, __wsum;
typedef __u64 __be64, __le64, __aligned_u64 __attribute__((aligned(8)));

typedef int pid_t;
typedef unsigned long size_t, uintptr_t;
typedef _Bool bool;
enum { false, true };
#define NULL ((void *)0)

#endif

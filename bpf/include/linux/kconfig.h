/* bcc includes this before everything else and refuses to compile without CONFIG_BPF_SYSCALL. */
#define CONFIG_BPF_SYSCALL 1

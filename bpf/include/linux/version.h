/* What bcc's helpers.h compares against: 5.15 is the oldest kernel twctl works on; twctl itself probes for features. */
#define KERNEL_VERSION(major, minor, patch) (((major) << 16) + ((minor) << 8) + (patch))
#define LINUX_VERSION_CODE KERNEL_VERSION(5, 15, 0)

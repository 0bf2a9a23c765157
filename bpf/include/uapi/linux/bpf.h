/* bcc carries its own copy of the BPF interface. */
#include "/virtual/include/bcc/bpf.h"

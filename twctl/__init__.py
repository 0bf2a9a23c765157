"""See, shorten and compact TCP TIME_WAIT on Linux with eBPF."""

__version__ = "0.1.0"

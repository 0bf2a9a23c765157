"""The tests on other kernels, in virtual machines."""

SIGN = "twctl-cell: "  # how cells.py, which runs in the guest, begins what is for the table
MODES, PROBES = ("observe", "truncate", "vestigial"), ("fentry", "tracepoint")

"""The table of vestiges: how it is compiled, loaded and pinned, and how user space reads it."""

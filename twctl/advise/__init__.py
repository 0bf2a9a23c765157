"""What is wrong, and what to do: a snapshot of table and kernel, and rules over it."""

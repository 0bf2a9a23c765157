"""What the modes do: end TIME_WAIT in time, keep table and kernel equal, guard, and say where that cannot be."""

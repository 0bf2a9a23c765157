"""Plumbing of Linux: what the kernel is asked and told, without a word about TIME_WAIT's classes or modes."""

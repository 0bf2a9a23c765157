"""The tests of twctl."""

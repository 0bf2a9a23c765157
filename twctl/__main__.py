"""`python -m twctl` is the command `twctl`."""

from twctl.cli import main

main()

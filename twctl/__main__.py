"""`python -m twctl` is the command `twctl`."""

from twctl.commands.cli import main

main()

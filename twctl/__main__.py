"""`python -m twctl` is the command `twctl`."""

from twctl.commands.main import main

main()

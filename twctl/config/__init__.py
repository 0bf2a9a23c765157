"""The configuration: its keys, how a file and the command line settle them, and a file to begin with."""

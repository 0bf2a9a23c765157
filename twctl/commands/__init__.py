"""The command line: nouns read, verbs change."""

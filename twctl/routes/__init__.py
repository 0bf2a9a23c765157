"""The host's routes, followed live, as the prefixes that say how near a peer is."""

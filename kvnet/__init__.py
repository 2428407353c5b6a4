"""The server of kvstore: one Twisted reactor that drives the engine in kvcore."""

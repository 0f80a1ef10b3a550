"""One builder attempt: its job from the manager and its events back, or FLOps' own command line and messages."""

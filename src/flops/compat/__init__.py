"""FLOps' own topics, messages and command line."""

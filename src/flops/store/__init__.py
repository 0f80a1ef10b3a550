"""One keyed memory: files, shared through the registry."""

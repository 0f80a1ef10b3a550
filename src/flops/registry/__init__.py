"""The embedded registry: the distribution API over a directory."""

"""Dependency files: one reader for each format, bytes in, requirements out, each with its line."""

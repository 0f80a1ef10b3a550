"""The base made from Debian packages."""

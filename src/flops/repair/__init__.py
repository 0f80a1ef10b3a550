"""Decides what is installed: from a repository's requirements to one lock per platform, with the doctor's repairs."""

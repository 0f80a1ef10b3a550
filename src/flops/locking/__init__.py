"""Exact wheels for plain requirements: uv is run, the package index is asked, and locks are kept."""

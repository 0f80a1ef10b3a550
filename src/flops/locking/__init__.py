"""Exact wheels for plain requirements: uv driven, the package index asked, what they answer read."""

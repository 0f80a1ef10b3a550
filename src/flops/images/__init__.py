"""Layers are planned and made, and composed into images."""

"""Layers planned, made and remembered, and composed into images."""

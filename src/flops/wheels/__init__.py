"""Wheels: fetched by hash, checked, installed into layers, and remembered."""

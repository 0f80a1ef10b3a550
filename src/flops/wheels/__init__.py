"""Wheels: fetched by hash, read by nobody's word, installed into a layer."""

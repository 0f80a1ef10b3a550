"""Finished images put in their place: tags, registries, layouts, engines, signatures."""

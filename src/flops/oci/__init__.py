"""Images as bytes: references, layers, manifests, layouts, registries. Knows no Python packaging and no FL."""

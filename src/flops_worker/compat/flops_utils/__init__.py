"""FLOps' import names, for ML repositories: they import flops_utils, and an actor image holds this in its place."""

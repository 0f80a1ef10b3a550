"""The ML repository contract: what FLOps calls, and whether a repository has it, told by syntax trees; nothing is executed."""

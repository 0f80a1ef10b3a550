"""The ML repository contract: what FLOps calls, and whether a repository defines it, judged by syntax trees; nothing is executed."""

"""Projects in, builders deployed, told, and removed, whatever happens."""

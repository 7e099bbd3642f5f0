"""Model registries: where a version's checkpoint lies, and how a migrated one becomes the next version."""

"""Checkpoints in several files: read, migrated and written as one."""

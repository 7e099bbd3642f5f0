"""Looks for mistakes in a folder of migrations that a run shows late or never. Nothing of it is imported."""

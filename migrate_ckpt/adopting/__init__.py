"""Takes over the migrations that a project has in another shape. Nothing of it is run: its files are read as text."""
